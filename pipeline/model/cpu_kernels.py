"""What cpu_kernels.cpp computes, for training on a CPU: compiled at first use, where a C++ compiler is there.

    why_not = cpu_kernels.load()                         # None: they are ready
    products.use(gpt, kinds, kernels=why_not is None)    # a model's layers and loss use them from here on

torch's own operators compute the same, up to the order of sums, in several passes over memory.

Legend: B batch, T time, N rows, H query heads, G key/value heads, D head size, C embedding, V vocabulary.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.cpp_extension import get_default_build_root

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "use_threads": [_INT],
    "attention_forward": [*[_POINTER] * 5, _FLOAT, _POINTER, *[_INT] * 5, *[_POINTER] * 2],
    "attention_backward": [*[_POINTER] * 6, _FLOAT, *[_POINTER] * 3, *[_INT] * 5, *[_POINTER] * 3],
    "dispatch": [_POINTER, *[_INT] * 5, *[_POINTER] * 4],
    "gather_rows": [ctypes.c_int32, *[_POINTER] * 2, *[_INT] * 3, _POINTER],
    "swiglu_forward": [ctypes.c_int32, _POINTER, _INT, _INT, _POINTER],
    "swiglu_gradient": [ctypes.c_int32, *[_POINTER] * 2, _INT, _INT, *[_POINTER] * 2],
    "combine_rows": [ctypes.c_int32, *[_POINTER] * 3, *[_INT] * 3, _POINTER],
    "combine_gradient": [ctypes.c_int32, *[_POINTER] * 4, *[_INT] * 3, *[_POINTER] * 2],
    "cross_entropy": [_POINTER, ctypes.c_int32, _POINTER, _INT, _INT, _POINTER],
    "rms_norm_forward": [_POINTER, _POINTER, _FLOAT, _INT, _INT, _POINTER, _POINTER],
    "rms_norm_backward": [*[_POINTER] * 4, _INT, _INT, _POINTER, _POINTER],
}
_DOCUMENTS = 4  # in a row, where nobody counted
_SECONDS = 120  # for the compiler, which takes two


# --- compiling --------------------------------------------------------------------------------------------------------


def load() -> str | None:
    """Make the kernels ready, compiling them if this processor has none yet; None, or why there are none."""
    try:
        _library()
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return next((line for line in said.splitlines() if line.strip()), type(error).__name__)
    return None


def _compiler() -> str:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler is installed")
    return compiler


@functools.cache
def key() -> str:
    """Of the kernels that `load` makes ready: those of another compiler, processor or source have other last digits."""
    known = _run(_compiler(), *_FLAGS, "-dM", "-E", "-x", "c++", os.devnull)  # of itself and of the processor
    return hashlib.sha256(f"{_FLAGS}{known}".encode() + _SOURCE.read_bytes()).hexdigest()[:32]


@functools.cache
def _library() -> ctypes.CDLL:
    compiler, root = _compiler(), os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    place = Path(root) / "moe_cpu_kernels" / f"{key()}.so"  # a folder that machines may share
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:  # each of several runs that begin at once its own
            made = Path(folder, place.name)
            _run(compiler, *_FLAGS, str(_SOURCE), "-o", str(made))
            made.replace(place)
    library = ctypes.CDLL(str(place))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout


def _call(name: str, *arguments: Tensor | float | None) -> None:
    """A function of the library; tensors are given by their address, and live until it is done."""
    assert all(a.is_contiguous() for a in arguments if isinstance(a, Tensor))
    _library().use_threads(torch.get_num_threads())
    getattr(_library(), name)(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


# --- attention --------------------------------------------------------------------------------------------------------


def attention(
    qkv_BTD: Tensor,
    cos_BTD: Tensor,
    sin_BTD: Tensor,
    norms_D: tuple[Tensor, Tensor] | None,
    eps: float,
    begin_BT: Tensor,
    n_head: int,
) -> Tensor:
    """Causal attention within documents, from the projection to all heads to what the output projection takes.

    `qkv_BTD`: [B, T, H + 2G, D], float32. Queries and keys are normalized (RMSNorm with `eps`, where its weights are
    given) and rotated; `begin_BT` says where in its row each token's document begins. Returns [B, T, H, D];
    differentiable in the first and in the norms' weights.
    """
    y_BTHD: Tensor = _attention(qkv_BTD, cos_BTD, sin_BTD, *(norms_D or (None, None)), eps, begin_BT, n_head)[0]
    return y_BTHD


def serves(rows: int, n_group: int) -> bool:
    """Whether `attention` keeps most threads busy: each takes one key/value head of one document, of a few in a row."""
    if torch.compiler.is_compiling():  # which cannot follow a question to torch's threads
        return True
    return rows * n_group * _DOCUMENTS >= torch.get_num_threads()


@torch.library.custom_op("moe::attention", mutates_args=(), device_types="cpu")
def _attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm_q: Tensor | None,
    norm_k: Tensor | None,
    eps: float,
    begin: Tensor,
    n_head: int,
) -> tuple[Tensor, Tensor]:
    """Return y [B, T, H, D] and, for backward, each query's logsumexp [B, T, H]."""
    y, logsumexp = _room(qkv, n_head)
    _call("attention_forward", qkv, cos, sin, norm_q, norm_k, eps, begin, *_sizes(qkv, n_head), y, logsumexp)
    return y, logsumexp


def _sizes(qkv: Tensor, n_head: int) -> tuple[int, int, int, int, int]:
    n_batch, time, heads, size = qkv.shape
    return n_batch, time, n_head, (heads - n_head) // 2, size


def _room(qkv: Tensor, n_head: int) -> tuple[Tensor, Tensor]:
    n_batch, time, _, size = qkv.shape
    return qkv.new_empty(n_batch, time, n_head, size), qkv.new_empty(n_batch, time, n_head)


@_attention.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, q: Any, k: Any, eps: float, begin: Tensor, n_head: int) -> Any:
    return _room(qkv, n_head)


@torch.library.custom_op("moe::attention_backward", mutates_args=(), device_types="cpu")
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm_q: Tensor | None,
    norm_k: Tensor | None,
    eps: float,
    begin: Tensor,
    y: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv and of the two norms' weights (zeros where there are none)."""
    grad_qkv = torch.empty_like(qkv)
    grad_norm_q, grad_norm_k = (qkv.new_zeros(qkv.size(-1)) for _ in range(2))
    inputs, saved = (grad, qkv, cos, sin, norm_q, norm_k), (begin, y, logsumexp)
    grads = grad_qkv, grad_norm_q, grad_norm_k
    _call("attention_backward", *inputs, eps, *saved, *_sizes(qkv, y.size(2)), *grads)
    return grads


@_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(qkv), qkv.new_empty(qkv.size(-1)), qkv.new_empty(qkv.size(-1))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # y alone has a gradient
    *tensors, eps, begin, _ = inputs
    ctx.save_for_backward(*tensors, begin, *output)
    ctx.eps = eps


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    *inputs, begin, y, logsumexp = ctx.saved_tensors
    grads = _attention_backward(grad.contiguous(), *inputs, ctx.eps, begin, y, logsumexp)
    normed = inputs[3] is not None
    return grads[0], None, None, *(grads[1:] if normed else (None, None)), None, None, None


_attention.register_autograd(_backward, setup_context=_keep)


# --- experts ----------------------------------------------------------------------------------------------------------


def experts(
    x_NC: Tensor, weight_NK: Tensor, index_NK: Tensor, gate_up_EJC: Tensor, down_ECI: Tensor, in_bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """As expert_kernels.experts, from the router's choice `index_NK`; and how many tokens each expert got, int64 [E].

    All float32; `in_bfloat16`: what is multiplied is rounded to bfloat16. Differentiable in all but `index_NK`.
    """
    dtype = torch.bfloat16 if in_bfloat16 else torch.float32
    y_NC, count_E, *_ = _experts(x_NC, weight_NK, index_NK, gate_up_EJC.to(dtype), down_ECI.to(dtype))
    return y_NC, count_E


_ROWS = (
    32  # to a multiple of which experts' rows are rounded up: for each shape oneDNN generates code, in the time of ten
)


@torch.library.custom_op("moe::experts_with_kernels", mutates_args=(), device_types="cpu")
def _experts(
    x_NC: Tensor, weight_NK: Tensor, index_NK: Tensor, gate_up_EJC: Tensor, down_ECI: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y_NC, count_E and, for backward, place_NK, assignment_S, begin (of E + 1), h_SJ and y_SC."""
    (n_tokens, n_chosen), (_, width, n_embd) = index_NK.shape, down_ECI.mT.shape
    room = _room_of_experts(x_NC, index_NK, gate_up_EJC, down_ECI)
    y_NC, count_E, place_NK, assignment_S, begin, h_SJ, y_SC = room
    in_bfloat16 = y_SC.dtype == torch.bfloat16
    sizes = n_tokens, n_chosen, len(down_ECI), _ROWS, len(assignment_S)
    _call("dispatch", index_NK.contiguous(), *sizes, place_NK, assignment_S, begin, count_E)
    begins = begin.tolist()
    rows = begins[-1]
    x_SC, hidden_SI = y_SC.new_empty(rows, n_embd), y_SC.new_empty(rows, width)
    _call("gather_rows", in_bfloat16, x_NC, assignment_S, n_chosen, rows, n_embd, x_SC)
    _multiply(x_SC, gate_up_EJC.mT, begins, h_SJ)
    _call("swiglu_forward", in_bfloat16, h_SJ, rows, width, hidden_SI)
    _multiply(hidden_SI, down_ECI.mT, begins, y_SC)
    _call("combine_rows", in_bfloat16, y_SC, place_NK, weight_NK, n_tokens, n_chosen, n_embd, y_NC)
    return room


def _multiply(x_SC: Tensor, weight_ECJ: Tensor, begins: list[int], y_SJ: Tensor) -> None:
    """Each expert's rows by its weights."""
    for weight_CJ, begin, end in zip(weight_ECJ, begins, begins[1:], strict=False):
        if begin < end:
            torch.mm(x_SC[begin:end], weight_CJ, out=y_SJ[begin:end])


def _multiply_rows(a_SJ: Tensor, b_SC: Tensor, begins: list[int], y_EJC: Tensor) -> None:
    """Σ_s a[s]ᵀ · b[s] over each expert's rows."""
    for y_JC, begin, end in zip(y_EJC, begins, begins[1:], strict=False):
        if begin < end:
            torch.mm(a_SJ[begin:end].T, b_SC[begin:end], out=y_JC)
        else:
            y_JC.zero_()


def _room_of_experts(
    x_NC: Tensor, index_NK: Tensor, gate_up_EJC: Tensor, down_ECI: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    n_expert, n_embd, _ = down_ECI.shape
    most = -(-index_NK.numel() // _ROWS) * _ROWS + n_expert * _ROWS  # rows, however tokens are spread over experts
    h_SJ, y_SC = (down_ECI.new_empty(most, width) for width in (gate_up_EJC.size(1), n_embd))
    count_E, place_NK, assignment_S, begin = (
        index_NK.new_empty(shape) for shape in (n_expert, index_NK.shape, most, n_expert + 1)
    )
    return torch.empty_like(x_NC), count_E, place_NK, assignment_S, begin, h_SJ, y_SC


@_experts.register_fake
def _(x: Tensor, weight: Tensor, index: Tensor, gate_up: Tensor, down: Tensor) -> Any:
    return _room_of_experts(x, index, gate_up, down)


@torch.library.custom_op("moe::experts_with_kernels_backward", mutates_args=(), device_types="cpu")
def _experts_backward(
    grad_NC: Tensor,
    x_NC: Tensor,
    weight_NK: Tensor,
    gate_up_EJC: Tensor,
    down_ECI: Tensor,
    place_NK: Tensor,
    assignment_S: Tensor,
    begin: Tensor,
    h_SJ: Tensor,
    y_SC: Tensor,
    frozen: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x_NC, weight_NK, gate_up_EJC and down_ECI; the last two empty where those are frozen."""
    (n_tokens, n_chosen), (_, width, n_embd) = place_NK.shape, down_ECI.mT.shape
    in_bfloat16, begins = y_SC.dtype == torch.bfloat16, begin.tolist()
    rows = begins[-1]
    grad_x_NC, grad_weight_NK = torch.empty_like(x_NC), torch.empty_like(weight_NK)
    grad_SC, grad_x_SC, x_SC = (y_SC.new_empty(rows, n_embd) for _ in range(3))
    grad_SI, hidden_SI, grad_SJ = (y_SC.new_empty(rows, size) for size in (width, width, 2 * width))
    inputs = grad_NC, y_SC, assignment_S, weight_NK
    _call("combine_gradient", in_bfloat16, *inputs, n_chosen, rows, n_embd, grad_SC, grad_weight_NK)
    _multiply(grad_SC, down_ECI, begins, grad_SI)
    _call("swiglu_gradient", in_bfloat16, grad_SI, h_SJ, rows, width, grad_SJ, None if frozen else hidden_SI)
    _multiply(grad_SJ, gate_up_EJC, begins, grad_x_SC)
    _call("combine_rows", in_bfloat16, grad_x_SC, place_NK, None, n_tokens, n_chosen, n_embd, grad_x_NC)
    if frozen:
        return grad_x_NC, grad_weight_NK, x_NC.new_empty(0), x_NC.new_empty(0)
    grad_gate_up_EJC, grad_down_ECI = (torch.empty_like(weight) for weight in (gate_up_EJC, down_ECI))
    _call("gather_rows", in_bfloat16, x_NC, assignment_S, n_chosen, rows, n_embd, x_SC)
    _multiply_rows(grad_SJ, x_SC, begins, grad_gate_up_EJC)
    _multiply_rows(grad_SC, hidden_SI, begins, grad_down_ECI)
    return grad_x_NC, grad_weight_NK, grad_gate_up_EJC, grad_down_ECI


@_experts_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor, *rest: Any) -> Any:
    weights = (x.new_empty(0), x.new_empty(0)) if rest[-1] else (gate_up, down)
    return tuple(torch.empty_like(tensor) for tensor in (x, weight, *weights))


def _keep_experts(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # y_NC alone has a gradient
    x_NC, weight_NK, _, gate_up_EJC, down_ECI = inputs
    ctx.save_for_backward(x_NC, weight_NK, gate_up_EJC, down_ECI, *output[2:])


def _backward_experts(ctx: Any, grad_NC: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_NC is None:
        return (None,) * 5
    frozen = not any(ctx.needs_input_grad[3:5])
    grad_x, grad_weight, grad_gate_up, grad_down = _experts_backward(grad_NC.contiguous(), *ctx.saved_tensors, frozen)
    return grad_x, grad_weight, None, *((None, None) if frozen else (grad_gate_up, grad_down))


_experts.register_autograd(_backward_experts, setup_context=_keep_experts)


# --- loss and norms ---------------------------------------------------------------------------------------------------


def cross_entropy(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Each target's -log p in nats, float32 [N], and its gradient by the logits, written over them.

    The logits are float32 or bfloat16. Where the target is negative, the loss and the gradient are 0.
    """
    nll_N = logits_NV.new_empty(len(target_N), dtype=torch.float32)
    in_bfloat16 = logits_NV.dtype == torch.bfloat16
    _call("cross_entropy", logits_NV, in_bfloat16, target_N, *logits_NV.shape, nll_N)
    return nll_N, logits_NV


def rms_norm(x: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last dimension, float32."""
    return cast(Tensor, _Normalize.apply(x, weight_C, eps))


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y, scale_N = torch.empty_like(x), x.new_empty(x.numel() // x.size(-1))
        ctx.save_for_backward(x, weight_C, scale_N)
        _call("rms_norm_forward", x, weight_C, eps, len(scale_N), x.size(-1), y, scale_N)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_C, scale_N = ctx.saved_tensors
        grad_x, grad_weight_C = torch.empty_like(x), torch.zeros_like(weight_C)
        inputs, sizes = (grad.contiguous(), x, weight_C, scale_N), (len(scale_N), x.size(-1))
        _call("rms_norm_backward", *inputs, *sizes, grad_x, grad_weight_C)
        return grad_x, grad_weight_C, None
