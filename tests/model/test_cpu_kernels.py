"""The compiled kernels of a CPU against float64, forward and backward."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model import build, cpu_kernels, products
from pipeline.train import kernels
from pipeline.train.step import Objective
from tests.model.small import tiny
from tests.train.small import tiny as run_settings

WHY = cpu_kernels.load()
pytestmark = pytest.mark.skipif(WHY is not None, reason=f"no compiled kernels: {WHY}")
VOCAB = 100


def _begins(rows: int, time: int, every: float) -> Tensor:
    first = torch.rand(rows, time) < 1 / every
    first[:, 0] = True
    return torch.where(first, torch.arange(time), 0).cummax(1).values


def _attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, norms: list[Tensor], eps: float, begin: Tensor, n_head: int
) -> Tensor:
    """All pairs of tokens, those of other documents left out."""
    n_group, size, time = (qkv.size(2) - n_head) // 2, qkv.size(3), qkv.size(1)
    q, k, v = qkv.split((n_head, n_group, n_group), 2)

    def rotated(x: Tensor, norm: Tensor | None) -> Tensor:
        x = x if norm is None else F.rms_norm(x, (size,), norm, eps)
        left, right = x.chunk(2, -1)
        return x * cos[:, :, None] + torch.cat((-right, left), -1) * sin[:, :, None]

    q, k = (rotated(x, norms[i] if norms else None) for i, x in enumerate((q, k)))
    k, v = (x.repeat_interleave(n_head // n_group, 2) for x in (k, v))
    place = torch.arange(time)
    may = (begin[:, :, None] == begin[:, None, :]) & (place[:, None] >= place)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(size)
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~may[:, None], -math.inf).softmax(-1), v)


@pytest.mark.parametrize(
    ("rows", "time", "n_head", "n_group", "size", "every", "normed"),
    [
        (2, 37, 4, 2, 32, 15, True),
        (3, 130, 4, 4, 16, 60, True),
        (1, 64, 6, 1, 64, 1000, False),  # one document, one key head
        (2, 50, 2, 2, 40, 1, True),  # a size that is no whole tile; documents of one token
        (1, 300, 2, 1, 128, 290, False),
    ],
)
def test_attention_within_documents_and_its_gradients(
    rows: int, time: int, n_head: int, n_group: int, size: int, every: float, normed: bool
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(rows, time, n_head + 2 * n_group, size) * 1.5
    cos, sin = (torch.rand(rows, time, size // 2).repeat(1, 1, 2) for _ in range(2))
    norms = [torch.rand(size) + 0.5, torch.rand(size) + 0.5] if normed else []
    begin, grad = _begins(rows, time, every), torch.randn(rows, time, n_head, size)
    inputs = [each.requires_grad_() for each in (qkv, *norms)]
    y = cpu_kernels.attention(qkv, cos, sin, (norms[0], norms[1]) if normed else None, 1e-5, begin, n_head)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = _attention(exact[0], cos.double(), sin.double(), exact[1:], 1e-5, begin, n_head)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    mine, theirs = torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, exact, grad.double())
    for found, sought in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found.double(), sought, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_vocab", [10, 100, 2048])
def test_cross_entropy_and_its_gradient(dtype: torch.dtype, n_vocab: int) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(30, n_vocab) * 3).to(dtype)
    logits[5] += 200  # where exp overflows
    logits[6] *= 100  # and where most of it is 0
    target = torch.randint(0, n_vocab, (30,))
    target[3] = -100
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, target, reduction="none")
    expected.sum().backward()  # type: ignore[no-untyped-call]
    nll, grad = cpu_kernels.cross_entropy(logits, target)
    torch.testing.assert_close(nll.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert exact.grad is not None and grad.dtype == dtype
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(grad.double(), exact.grad, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    logits, x = torch.zeros(2, 40), torch.ones(2, 40)
    logits[0, 7] = x[0, 7] = bad
    nll, grad = cpu_kernels.cross_entropy(logits, torch.tensor([3, 3]))
    assert not nll[0].isfinite() and not grad[0].isfinite().all() and nll[1].isfinite() and grad[1].isfinite().all()
    assert not cpu_kernels.rms_norm(x, torch.ones(40), 1e-5)[0].isfinite().all()
    qkv = torch.zeros(1, 4, 3, 8)
    qkv[0, 1] = bad
    angles = torch.ones(1, 4, 8)
    y = cpu_kernels.attention(qkv, angles, angles, None, 1e-5, torch.zeros(1, 4, dtype=torch.int64), 1)
    assert not y[0, 1:].isfinite().any()


@pytest.mark.parametrize("width", [5, 32, 132])
def test_rms_norm_and_its_gradients(width: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, 7, width).requires_grad_(), torch.rand(width).requires_grad_()]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    y, expected = cpu_kernels.rms_norm(*inputs, 1e-5), F.rms_norm(exact[0], (width,), exact[1], 1e-5)
    grad = torch.randn(3, 7, width)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    mine, theirs = torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, exact, grad.double())
    for found, sought in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found.double(), sought, rtol=1e-5, atol=1e-5)


def test_a_norms_gradient_is_read_whole_where_it_is_a_part_of_another() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 512, heads, 64).requires_grad_() for heads in (8, 2)] + [torch.rand(64).requires_grad_()]
    found = []
    for norm in (cpu_kernels.rms_norm, lambda x, weight, eps: F.rms_norm(x, (64,), weight, eps)):
        y = torch.cat([norm(x, inputs[2], 1e-5) for x in inputs[:2]], dim=2)
        found.append(torch.autograd.grad(y, inputs, torch.arange(y.numel()).view(y.shape) / y.numel()))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def _experts(x_NC: Tensor, weight_NK: Tensor, index_NK: Tensor, gate_up_EJC: Tensor, down_ECI: Tensor) -> Tensor:
    """Every expert on every token, by weight 0 where it was not chosen."""
    gate, up = torch.einsum("nc,ejc->nej", x_NC, gate_up_EJC).chunk(2, -1)
    y_NEC = torch.einsum("nei,eci->nec", F.silu(gate) * up, down_ECI)
    weight_NE = torch.zeros(len(x_NC), len(down_ECI), dtype=x_NC.dtype).scatter_add(1, index_NK, weight_NK)
    return torch.einsum("ne,nec->nc", weight_NE, y_NEC)


@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize(("n_tokens", "n_expert", "top", "width"), [(1, 4, 2, 16), (77, 4, 2, 24), (200, 9, 3, 50)])
def test_experts_and_their_gradients(n_tokens: int, n_expert: int, top: int, width: int, in_bfloat16: bool) -> None:
    torch.manual_seed(0)
    x, weight, gate_up = torch.randn(n_tokens, 36), torch.rand(n_tokens, top), torch.randn(n_expert, 2 * width, 36) / 6
    down, index = torch.randn(n_expert, 36, width) / 6, torch.rand(n_tokens, n_expert - 1).topk(top).indices
    inputs = [each.requires_grad_() for each in (x, weight, gate_up, down)]  # nothing goes to the last expert
    y, count = cpu_kernels.experts(x, weight, index, gate_up, down, in_bfloat16)
    assert count.tolist() == index.flatten().bincount(minlength=n_expert).tolist()
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = _experts(exact[0], exact[1], index, exact[2], exact[3])
    furthest = 0.02 if in_bfloat16 else 1e-6
    grad = torch.randn(n_tokens, 36)
    mine, theirs = torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, exact, grad.double())
    for found, sought in zip((y, *mine), (expected, *theirs), strict=True):
        assert (found.double() - sought).norm() <= furthest * sought.norm()


def test_frozen_experts_have_no_gradient() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(20, 16, requires_grad=True), (torch.randn(4, 32, 16), torch.randn(4, 16, 16))
    weight, index = torch.rand(20, 2), torch.rand(20, 4).topk(2).indices
    y, _ = cpu_kernels.experts(x, weight, index, *weights, False)
    (mine,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(_experts(x, weight, index, *weights).sum(), x)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_attention_is_the_same_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    qkv, angles, begin = torch.randn(4, 60, 8, 16, requires_grad=True), torch.rand(4, 60, 16), _begins(4, 60, 20)
    norms = (torch.rand(16, requires_grad=True), torch.rand(16, requires_grad=True))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = cpu_kernels.attention(qkv, angles, angles, norms, 1e-5, begin, 4)
            found.append((y, *torch.autograd.grad(y.square().sum(), (qkv, *norms))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(mine.equal(theirs) for mine, theirs in zip(found[0], other, strict=True))


# --- in a model -------------------------------------------------------------------------------------------------------


def _objective(**changes: object) -> Objective:
    model = tiny(tie_embeddings=False, **({"norm_qk": True} | changes))
    return Objective(build.build(model, VOCAB, seed=1), run_settings(loss_chunk=16).train, eos_id=0)


def test_without_documents_torch_attends_and_the_norms_of_queries_are_ours() -> None:
    torch.manual_seed(0)
    tokens, found = torch.randint(0, VOCAB, (2, 41)), []
    for kernels_too in (False, True):
        model = tiny(tie_embeddings=False, norm_qk=True)
        train = run_settings(loss_chunk=16, document_mask=False).train
        objective = Objective(build.build(model, VOCAB, seed=1), train, eos_id=0)
        products.use(objective.gpt, [], kernels_too)
        grads = torch.autograd.grad(objective(tokens)[0], list(objective.parameters()))
        found.append(torch.cat([grad.flatten() for grad in grads]))
    assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()


STRUCTURES = [{}, {"norm_qk": False}, {"moe_every": 2, "n_shared_expert": 1, "norm_qk": False}, {"n_expert": 0}]


@pytest.mark.parametrize("changes", STRUCTURES, ids=str)
def test_a_models_loss_and_gradients_stay_near_those_of_float64(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, VOCAB, (2, 41))
    tokens[:, [10, 25]] = 0  # the end of a document
    found = {}
    for way in ("exact", "torch", "kernels"):
        objective = _objective(**changes)
        if way == "exact":
            objective = objective.double()
        products.use(objective.gpt, [], way == "kernels")
        total, _ = objective(tokens)
        grads = torch.autograd.grad(total, list(objective.parameters()))
        found[way] = torch.cat([total.detach().view(1), *(grad.flatten() for grad in grads)]).double()
    assert not found["kernels"].equal(found["torch"]), "they are used"
    assert (found["kernels"] - found["exact"]).norm() < 1e-5 * found["exact"].norm()


@pytest.mark.parametrize("changes", STRUCTURES, ids=str)
def test_kernels_are_tried_on_the_model_before_they_are_used(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = _objective(**changes)
    assert kernels.refused(objective) is None
    assert all(parameter.grad is None for parameter in objective.parameters())
    right = cpu_kernels.rms_norm
    monkeypatch.setattr(cpu_kernels, "rms_norm", lambda *inputs: right(*inputs) * 1.01)
    assert kernels.refused(objective) == "what was compiled computes something else than torch"


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu_kernels.key.cache_clear()
    cpu_kernels._library.cache_clear()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cpu_kernels.load() == "no C++ compiler is installed"
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no such flag: -fopenmp' >&2; exit 1\n")
    broken.chmod(0o755)
    assert cpu_kernels.load() == "no such flag: -fopenmp"
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert cpu_kernels.load() is None
    assert len(list((tmp_path / "moe_cpu_kernels").iterdir())) == 1
