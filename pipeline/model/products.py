"""Matmuls in bfloat16 where the processor does them faster, while everything between them stays in float32.

    gains = probe(gpt, tokens, chunk)      # {"experts": 3.3, …}: how many times as fast each kind of product would be
    use(gpt, worthwhile(gains))            # from here on those kinds multiply in bfloat16

What is multiplied is rounded to bfloat16 and summed in float32, as tensor cores do. Mixed precision throughout does not
pay on a CPU, where small softmaxes and norms get slower by it; so each kind of product is asked for by itself.

Legend: N tokens, C inputs, J outputs, V padded vocabulary, E experts.
"""

import time
from collections.abc import Callable, Iterable

import torch

from pipeline.model.blocks import MLP, Attention, RMSNorm
from pipeline.model.build import MoEGPT
from pipeline.model.moe import MoE

KINDS = ("attention", "mlp", "experts", "head")  # projections of attention, dense and shared MLPs, experts, logits
_WORTH_IT = 1.3  # times as fast; below, it is not worth the rounding
_MOST = (256, 2048, 2048)  # rows, inputs and outputs of a product that is tried: speed changes little beyond
_SMALL = (64, 128, 128)
_TIMES = 3


def use(gpt: MoEGPT, kinds: Iterable[str], kernels: bool = False) -> None:
    """Multiply in bfloat16 in these kinds of product, and as the model's dtype says in all others.

    kernels: what is between the products is computed by those of cpu_kernels.py, which are loaded.
    """
    chosen = set(kinds)
    gpt.in_bfloat16 = "head" in chosen
    for module in gpt.modules():
        if isinstance(module, Attention | RMSNorm | MoE | MoEGPT):
            module.with_kernels = kernels
        for kind, of in (("attention", Attention), ("mlp", MLP), ("experts", MoE)):
            if isinstance(module, of):
                module.in_bfloat16 = kind in chosen


def worthwhile(gains: dict[str, float]) -> list[str]:
    return [kind for kind, gain in gains.items() if gain >= _WORTH_IT]


def probe(gpt: MoEGPT, tokens: int, chunk: int) -> dict[str, float]:
    """How many times as fast each kind of product of the model is in bfloat16, forward and backward, measured here.

    `tokens`: in a micro batch; `chunk`: whose logits are held at a time. Takes some tens of milliseconds.
    """
    shapes = _shapes(gpt, tokens, chunk)
    if emulated():  # larger ones would take seconds
        return dict.fromkeys(shapes, 0.0)
    return {kind: _gain(shape) for kind, shape in shapes.items()}


def emulated() -> bool:
    """Whether this processor has no bfloat16 of its own: its products then run at a hundredth of the speed or less."""
    return _gain(_SMALL) < 0.3


def _shapes(gpt: MoEGPT, tokens: int, chunk: int) -> dict[str, tuple[int, int, int]]:
    """Rows, inputs and outputs of a product of each kind that the model has."""
    config, shapes = gpt.config, {}
    for module in gpt.modules():
        if isinstance(module, Attention):
            heads = config.n_head + 2 * config.n_query_groups
            shapes["attention"] = (tokens, config.n_embd, heads * config.head_size)
        elif isinstance(module, MLP):
            shapes["mlp"] = (tokens, config.n_embd, module.intermediate_size)
        elif isinstance(module, MoE):
            rows = max(1, tokens * config.n_expert_per_token // config.n_expert)
            shapes["experts"] = (rows, config.n_embd, 2 * module.width)
    shapes["head"] = (min(chunk or tokens, tokens), config.n_embd, config.padded_vocab_size)
    return shapes


def _gain(shape: tuple[int, int, int]) -> float:
    n, c, j = (min(size, most) for size, most in zip(shape, _MOST, strict=True))
    x_NC, weight_JC, grad_NJ = torch.rand(n, c), torch.rand(j, c), torch.rand(n, j)

    def multiply(dtype: torch.dtype) -> None:
        x, weight, grad = x_NC.to(dtype), weight_JC.to(dtype), grad_NJ.to(dtype)
        for result in (x @ weight.T, grad @ weight, grad.T @ x):
            result.float()

    return _seconds(lambda: multiply(torch.float32)) / _seconds(lambda: multiply(torch.bfloat16))


def _seconds(work: Callable[[], None]) -> float:
    """The shortest of some times, after one that does not count: oneDNN generates its code in it."""
    work()
    times = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)
