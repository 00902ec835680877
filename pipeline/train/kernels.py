"""Whether the compiled kernels of a CPU may be used: they are there, and give what torch's operators give."""

import torch
import torch.distributed as dist

from pipeline.model import cpu_kernels, products
from pipeline.tokens.flags import FIRST, LOSS
from pipeline.train.step import Objective

_TOKENS = 64  # of a row, in two documents
_FURTHEST = 1e-3  # of a gradient; sums in another order differ by a thousandth of it


def refused(objective: Objective) -> str | None:
    """Make the kernels ready and try them on a few tokens of the model at hand; None, or why they are not used.

    Every rank must call it, before the objective is wrapped; the answer is the same on all.
    """
    why = _of_any_rank(cpu_kernels.load())
    if why is None:  # and so on every rank: the objective adds up over ranks
        why = _of_any_rank(None if _agree(objective) else "what was compiled computes something else than torch")
    return why


def _of_any_rank(why: str | None) -> str | None:
    if not (dist.is_available() and dist.is_initialized()):
        return why
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, why)
    return next(filter(None, found), None)


def _agree(objective: Objective) -> bool:
    gpt, weights = objective.gpt, [p for p in objective.parameters() if p.requires_grad]
    half = min(_TOKENS, gpt.max_seq_length) // 2
    generator = torch.Generator().manual_seed(0)
    shape = (torch.get_num_threads(), 2 * half + 1)
    tokens_BS = torch.randint(0, gpt.config.vocab_size, shape, generator=generator)
    tokens_BS[:, half] = objective.eos_id
    if objective.flags:
        tokens_BS |= LOSS
        tokens_BS[:, [0, half]] |= FIRST
    found = []
    for kernels in (False, True):
        products.use(gpt, (), kernels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # an adapter's dropout is the same both times
            loss, _ = objective(tokens_BS)
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
        found.append(torch.cat([loss.detach().view(1), *(grad.flatten() for grad in grads if grad is not None)]))
        objective.balance.finish(gpt, 0.0)
    expected, mine = found
    return bool((mine - expected).norm() <= _FURTHEST * expected.norm())  # False for nan, too
