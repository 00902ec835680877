"""The experts' matmuls, for each kind of device: one call, `experts`, on assignments sorted by expert.

CPU: a loop over experts whose slices stay in cache, in one operator with a backward of its own.
Hopper and Blackwell, bfloat16: grouped GEMM.
Anything else: blocks of assignments, each with a copy of its expert's weights (batched GEMM).
The last two never wait for the device: where an expert's slice ends is known there alone.

Legend: see pipeline/model/moe.py; besides, b blocks of m assignments.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def experts(
    x_NC: Tensor, weight_NK: Tensor, order_S: Tensor, end_E: Tensor, gate_up_EJC: Tensor, down_ECI: Tensor
) -> Tensor:
    """Σ_k weight[n, k] · down_e(silu(gate_e(x_n)) · up_e(x_n)) with e the expert of assignment (n, k): [N, C].

    All tensors but `order_S` (int64) and `end_E` (int32) have one dtype; differentiable in the other four.
    """
    token_S = order_S // weight_NK.size(1)
    place_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(order_S.size(0), device=order_S.device))
    place_NK = place_S.view(weight_NK.shape)
    if x_NC.device.type == "cpu":
        return _experts_cpu(x_NC, weight_NK, token_S, place_NK, end_E, gate_up_EJC, down_ECI)[0]
    matmuls = _grouped if _has_grouped_mm(x_NC, down_ECI) else _blocked
    weight_S1 = weight_NK.reshape(-1, 1)[order_S]
    y_SC = matmuls(_Spread.apply(x_NC, token_S, place_NK), weight_S1, end_E, gate_up_EJC, down_ECI)
    return _Gather.apply(y_SC, token_S, place_NK)


# --- moving rows: each function's backward is the other's forward, so that neither ever adds by index -----------------


class _Spread(torch.autograd.Function):
    """x_NC to x_SC: a copy of a token's row for each of its assignments."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, token_S: Tensor, place_NK: Tensor) -> Tensor:
        ctx.save_for_backward(token_S, place_NK)
        return x_NC[token_S]

    @staticmethod
    def backward(ctx: Any, grad_SC: Tensor) -> tuple[Tensor, None, None]:
        return grad_SC[ctx.saved_tensors[1]].sum(1), None, None


class _Gather(torch.autograd.Function):
    """y_SC to y_NC: the sum over a token's assignments."""

    @staticmethod
    def forward(ctx: Any, y_SC: Tensor, token_S: Tensor, place_NK: Tensor) -> Tensor:
        ctx.save_for_backward(token_S, place_NK)
        return y_SC[place_NK].sum(1)

    @staticmethod
    def backward(ctx: Any, grad_NC: Tensor) -> tuple[Tensor, None, None]:
        return grad_NC[ctx.saved_tensors[0]], None, None


# --- CUDA -------------------------------------------------------------------------------------------------------------


def _has_grouped_mm(x: Tensor, down_ECI: Tensor) -> bool:
    aligned = down_ECI.size(1) % 8 == 0 and down_ECI.size(2) % 8 == 0  # rows of 16 bytes
    return (
        x.device.type == "cuda"
        and x.dtype == torch.bfloat16
        and aligned
        and torch.cuda.get_device_capability(x.device)[0] in (9, 10)  # elsewhere torch loops, with a wait per call
    )


def _grouped(x_SC: Tensor, weight_S1: Tensor, end_E: Tensor, gate_up_EJC: Tensor, down_ECI: Tensor) -> Tensor:
    h_SJ = F.grouped_mm(x_SC, gate_up_EJC.mT, offs=end_E)
    return F.grouped_mm(_swiglu(h_SJ) * weight_S1, down_ECI.mT, offs=end_E)


def _swiglu(h_J: Tensor) -> Tensor:
    gate, up = h_J.chunk(2, dim=-1)
    return F.silu(gate) * up


def _blocked(x_SC: Tensor, weight_S1: Tensor, end_E: Tensor, gate_up_EJC: Tensor, down_ECI: Tensor) -> Tensor:
    """Each expert's slice is padded to whole blocks; their number has a bound that depends on shapes alone."""
    n_assigned, n_expert = x_SC.size(0), end_E.size(0)
    block = max(16, -(-n_assigned // (64 * n_expert)) * 16)  # a quarter of an even load: padding adds an eighth or so
    n_blocks = -(-n_assigned // block) + n_expert
    count_E = end_E.diff(prepend=end_E.new_zeros(1))
    last_block_E = ((count_E + block - 1) // block).cumsum(0)
    expert_b = torch.searchsorted(last_block_E, torch.arange(n_blocks, device=x_SC.device), right=True)
    expert_b = expert_b.clamp(max=n_expert - 1)  # blocks past the last expert's hold nothing
    shift_E = (last_block_E - (count_E + block - 1) // block) * block - (end_E - count_E)
    number_S = torch.arange(n_assigned, device=x_SC.device)
    expert_S = torch.searchsorted(end_E, number_S, right=True, out_int32=True)
    row_S = number_S + shift_E[expert_S]
    x_bmC = x_SC.new_zeros(n_blocks * block, x_SC.size(1)).index_copy(0, row_S, x_SC).view(n_blocks, block, -1)
    h_bmJ = _BlockMatmul.apply(x_bmC, gate_up_EJC, expert_b)
    y_bmC = _BlockMatmul.apply(_swiglu(h_bmJ), down_ECI, expert_b)
    return y_bmC.flatten(0, 1)[row_S] * weight_S1


class _BlockMatmul(torch.autograd.Function):
    """x_bmC · weight_EJC[expert_b]ᵀ; the blocks' copies of weights are made again in backward, not kept until then.

    Kept, they would be several times the experts themselves: 4.5 GB for 12 layers of 40 blocks of 768 × 2048.
    """

    @staticmethod
    def forward(ctx: Any, x_bmC: Tensor, weight_EJC: Tensor, expert_b: Tensor) -> Tensor:
        ctx.save_for_backward(x_bmC, weight_EJC, expert_b)
        return torch.bmm(x_bmC, weight_EJC[expert_b].mT)

    @staticmethod
    def backward(ctx: Any, grad_bmJ: Tensor) -> tuple[Tensor, Tensor, None]:
        x_bmC, weight_EJC, expert_b = ctx.saved_tensors
        grad_EJC = torch.zeros_like(weight_EJC)
        grad_EJC.index_put_((expert_b,), torch.bmm(grad_bmJ.mT, x_bmC), accumulate=True)
        return torch.bmm(grad_bmJ, weight_EJC[expert_b]), grad_EJC, None


# --- CPU --------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("moe::experts", mutates_args=(), device_types="cpu")
def _experts_cpu(
    x_NC: Tensor,
    weight_NK: Tensor,
    token_S: Tensor,
    place_NK: Tensor,
    end_E: Tensor,
    gate_up_EJC: Tensor,
    down_ECI: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y_NC and, for backward, the hidden h_SJ and each assignment's y_SC."""
    token_S, rows, width = *_padded(token_S, x_NC), down_ECI.size(2)
    h_SJ = x_NC.new_empty(len(token_S), 2 * width)
    y_SC = x_NC.new_empty(len(token_S), x_NC.size(1))
    for e, begin, end in _slices(end_E):
        padded = _rounded_up(begin, end, rows)
        h_MJ = h_SJ[padded]
        torch.mm(x_NC.index_select(0, token_S[padded]), gate_up_EJC[e].T, out=h_MJ)
        torch.mm(F.silu(h_MJ[:, :width]).mul_(h_MJ[:, width:]), down_ECI[e].T, out=y_SC[padded])
    return _sum_of_rows(y_SC, place_NK, weight_NK), h_SJ, y_SC


@_experts_cpu.register_fake
def _(x_NC: Tensor, weight_NK: Tensor, token_S: Tensor, place_NK: Tensor, end_E: Tensor, *weights: Tensor) -> Any:
    n_padded, width = token_S.size(0) + _rows(x_NC) - 1, weights[0].size(1)
    return torch.empty_like(x_NC), x_NC.new_empty(n_padded, width), x_NC.new_empty(n_padded, x_NC.size(1))


@torch.library.custom_op("moe::experts_backward", mutates_args=(), device_types="cpu")
def _experts_cpu_backward(
    grad_NC: Tensor,
    x_NC: Tensor,
    weight_NK: Tensor,
    token_S: Tensor,
    place_NK: Tensor,
    end_E: Tensor,
    gate_up_EJC: Tensor,
    down_ECI: Tensor,
    h_SJ: Tensor,
    y_SC: Tensor,
    frozen: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x_NC, weight_NK, gate_up_EJC and down_ECI; the last two empty where those are frozen."""
    token_S, rows, width = *_padded(token_S, x_NC), down_ECI.size(2)
    weight_S1 = torch.empty_like(weight_NK).view(-1)
    weight_S1 = weight_S1.scatter_(0, place_NK.flatten(), weight_NK.flatten())[:, None]
    grad_weight_S = torch.empty_like(weight_S1[:, 0])
    grad_x_SC = torch.empty_like(y_SC)
    shapes = (0,) if frozen else gate_up_EJC.shape, (0,) if frozen else down_ECI.shape
    grad_gate_up_EJC, grad_down_ECI = (x_NC.new_empty(shape) for shape in shapes)
    for e, begin, end in _slices(end_E):
        if begin == end and frozen:
            continue
        if begin == end:
            grad_gate_up_EJC[e].zero_()
            grad_down_ECI[e].zero_()
            continue
        padded = _rounded_up(begin, end, rows)
        token_M = token_S[padded]
        grad_MC = grad_NC.index_select(0, token_M)
        torch.linalg.vecdot(grad_MC[: end - begin], y_SC[begin:end], out=grad_weight_S[begin:end])
        grad_MC[: end - begin] *= weight_S1[begin:end]
        grad_MC[end - begin :] = 0  # so that what is too much adds nothing
        gate_MI, up_MI = h_SJ[padded, :width], h_SJ[padded, width:]
        silu_MI = F.silu(gate_MI)
        if not frozen:
            torch.mm(grad_MC.T, silu_MI * up_MI, out=grad_down_ECI[e])
        grad_MI = grad_MC @ down_ECI[e]
        grad_h_MJ = h_SJ.new_empty(len(token_M), 2 * width)
        torch.mul(grad_MI, silu_MI, out=grad_h_MJ[:, width:])
        torch.ops.aten.silu_backward(grad_MI.mul_(up_MI), gate_MI, grad_input=grad_h_MJ[:, :width])
        if not frozen:
            torch.mm(grad_h_MJ.T, x_NC.index_select(0, token_M), out=grad_gate_up_EJC[e])
        torch.mm(grad_h_MJ, gate_up_EJC[e], out=grad_x_SC[padded])
    return _sum_of_rows(grad_x_SC, place_NK), grad_weight_S[place_NK], grad_gate_up_EJC, grad_down_ECI


@_experts_cpu_backward.register_fake
def _(grad_NC: Tensor, x_NC: Tensor, weight_NK: Tensor, *rest: Tensor) -> Any:
    weights = (x_NC.new_empty(0), x_NC.new_empty(0)) if rest[-1] else (rest[3], rest[4])
    return tuple(torch.empty_like(tensor) for tensor in (x_NC, weight_NK, *weights))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # only y_NC has a gradient; zeros for the other two would be as large as they are
    ctx.save_for_backward(*inputs, *output[1:])


def _backward(ctx: Any, grad_NC: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_NC is None:
        return (None,) * 7
    frozen = not any(ctx.needs_input_grad[-2:])
    grads = _experts_cpu_backward(grad_NC.contiguous(), *ctx.saved_tensors, frozen)
    grad_x, grad_weight, grad_gate_up, grad_down = grads if not frozen else (*grads[:2], None, None)
    return grad_x, grad_weight, None, None, None, grad_gate_up, grad_down


_experts_cpu.register_autograd(_backward, setup_context=_keep)


def _rows(x: Tensor) -> int:
    """Experts' slices are rounded up to a multiple of so many rows.

    For each shape in bfloat16, oneDNN generates code, in ten times the time that a small product takes; the sizes of
    slices are new in each step.
    """
    return 32 if x.dtype == torch.bfloat16 else 1


def _padded(token_S: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """The tokens, with room for the last slice's rounding, and what slices are rounded up to."""
    rows = _rows(x)
    return (F.pad(token_S, (0, rows - 1)) if rows > 1 else token_S), rows


def _rounded_up(begin: int, end: int, rows: int) -> slice:
    """Past its own rows an expert reads, and writes, those of the next, which writes them anew after it."""
    return slice(begin, begin + -(-(end - begin) // rows) * rows)


def _slices(end_E: Tensor) -> list[tuple[int, int, int]]:
    """(expert, begin, end) of each expert."""
    ends = end_E.tolist()
    return [(e, begin, end) for e, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))]


def _sum_of_rows(x_SC: Tensor, place_NK: Tensor, weight_NK: Tensor | None = None) -> Tensor:
    """Σ_k weight[n, k] · x[place[n, k]] in one pass over memory, which is what an embedding bag is."""
    return F.embedding_bag(place_NK, x_SC, mode="sum", per_sample_weights=weight_NK)
