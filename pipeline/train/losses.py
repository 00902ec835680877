"""What training minimizes: cross-entropy in chunks, and the router's load balancing and z-loss.

    lm = cross_entropy(model.hidden(idx_BT), model.lm_head.weight, target_BT, chunk=1024)
    aux = global_batch(routing(model))                 # a GlobalBatch; once a micro batch
    (lm + coef * aux.balance + z_coef * aux.z).backward()

Legend: B batch, T time, N = B·T targets, C embedding, V vocabulary, E experts, L MoE layers.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model import cpu_kernels
from pipeline.model.moe import MoE
from pipeline.model.routing import Routing

IGNORE = -100  # a target that counts for nothing


# --- language modelling -----------------------------------------------------------------------------------------------


def cross_entropy(
    hidden_BTC: Tensor, head_VC: Tensor, target_BT: Tensor, chunk: int = 0, kernels: bool = False
) -> Tensor:
    """Mean cross-entropy in nats over the targets that are not IGNORE.

    `chunk`: targets whose logits are held at a time (0: all). Gradients are taken with the chunk's logits at hand, so
    that never more than chunk · V of them exist; the head's gradient is summed in float32. `kernels`: with those of
    pipeline/model/cpu_kernels.py, which are loaded.
    """
    hidden_NC, target_N = hidden_BTC.flatten(0, -2), target_BT.flatten()
    kind = hidden_NC.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden_NC, head_VC = hidden_NC.to(dtype), head_VC.to(dtype)
    if kernels:
        return _ChunkedCrossEntropy.apply(hidden_NC, head_VC, target_N, chunk or len(target_N), True)
    if chunk == 0 or chunk >= target_N.numel():
        return F.cross_entropy(F.linear(hidden_NC, head_VC).float(), target_N, ignore_index=IGNORE)
    return _ChunkedCrossEntropy.apply(hidden_NC, head_VC, target_N, chunk, False)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NC: Tensor, head_VC: Tensor, target_N: Tensor, chunk: int, kernels: bool) -> Tensor:
        with torch.autocast(hidden_NC.device.type, enabled=False):
            return _ChunkedCrossEntropy._forward(ctx, hidden_NC, head_VC, target_N, chunk, kernels)

    @staticmethod
    def _forward(ctx: Any, hidden_NC: Tensor, head_VC: Tensor, target_N: Tensor, chunk: int, kernels: bool) -> Tensor:
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        grad_hidden_NC = torch.empty_like(hidden_NC) if needs_hidden else None
        grad_head_VC = torch.zeros_like(head_VC, dtype=torch.float32) if needs_head else None
        n_targets = (target_N != IGNORE).sum().clamp(min=1)
        total = hidden_NC.new_zeros((), dtype=torch.float32)
        for begin in range(0, target_N.size(0), chunk):
            hidden, target = (hidden_NC[begin : begin + chunk], target_N[begin : begin + chunk])
            kept = (target != IGNORE)[:, None]
            logits = F.linear(hidden, head_VC)
            nll, grad_logits = (cpu_kernels.cross_entropy if kernels else _nll_and_gradient)(logits, target)
            total += torch.where(kept, nll[:, None], 0.0).sum()
            if grad_hidden_NC is not None:
                grad_hidden_NC[begin : begin + chunk] = (grad_logits @ head_VC) * kept
            if grad_head_VC is not None:
                _add_matmul(grad_head_VC, grad_logits.T, hidden * kept)
        ctx.save_for_backward(grad_hidden_NC, grad_head_VC, n_targets)
        ctx.head_dtype = head_VC.dtype
        return total / n_targets

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden_NC, grad_head_VC, n_targets = ctx.saved_tensors
        share = grad / n_targets  # only here, with float16's loss scale in it, so that nothing small is rounded away
        return (
            None if grad_hidden_NC is None else grad_hidden_NC * share.to(grad_hidden_NC.dtype),
            None if grad_head_VC is None else (grad_head_VC * share).to(ctx.head_dtype),
            None,
            None,
            None,
        )


def _nll_and_gradient(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of each target in float32, and its gradient by the logits in their dtype."""
    place_N1, logits = target_N.clamp(min=0)[:, None], logits_NV.float()
    p = logits.softmax(-1)
    # By way of the likeliest token, whose p never underflows: one pass of exp, not two.
    nll_N1 = logits.amax(-1, True) - p.amax(-1, True).log() - logits.gather(1, place_N1)
    p.scatter_add_(1, place_N1, p.new_full(place_N1.shape, -1.0))
    return nll_N1[:, 0], p.to(logits_NV.dtype)


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


# --- routing ----------------------------------------------------------------------------------------------------------


class Auxiliary(NamedTuple):
    """Router losses of one micro batch, each a scalar: means over MoE layers, not yet weighted."""

    balance: Tensor  # 1 when even
    z: Tensor


class GlobalBatch:
    """Load balancing over the global batch: the fractions of one optimizer step, over its micro batches and ranks.

    Switch's loss (arXiv 2101.03961, equation 4; for top-k its count over N·K assignments) of a layer is

        E · Σ_e f_e · P_e,   f_e = assignments to expert e / all,   P_e = mean over tokens of the router's p_e

    with f and P over the global batch (arXiv 2501.11873: balancing each micro batch forbids specialization). f has no
    gradient; P is a mean over micro batches and ranks, as the gradient is. So the loss of micro batch m on a rank is
    E · Σ_e f_e · P_e(its tokens), and the mean over all is the global loss, exactly, if f is.

    f is summed over ranks in each micro batch (an all-reduce of L x E counts, no wait for the host). Over accumulation
    it is the fraction in the micro batches of this step so far, which the last one of a step completes: exact without
    accumulation and on any number of ranks; with M micro batches an estimate for the first M - 1, whose backward runs
    before the rest is known. It has no bias where micro batches are drawn alike.

    One call for each micro batch, `finish` after the optimizer step.
    """

    def __init__(self) -> None:
        self.count_LE: Tensor | None = None

    def __call__(self, layers: list[Routing]) -> Auxiliary:
        """Losses of the micro batch whose forward left `layers`, which must not be empty."""
        count_LE = torch.stack([layer.count_E for layer in layers])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count_LE)
        self.count_LE = count_LE if self.count_LE is None else self.count_LE + count_LE
        fraction_LE = self.count_LE / self.count_LE.sum(-1, keepdim=True)
        probability_LE = torch.stack([layer.probability_E for layer in layers])
        balance = probability_LE.size(-1) * (fraction_LE * probability_LE).sum(-1).mean()
        return Auxiliary(balance, torch.stack([layer.z for layer in layers]).mean())

    def finish(self, model: nn.Module, bias_update_rate: float) -> None:
        """End the step: sigmoid routers' biases move by `bias_update_rate` towards an even load; counts start anew."""
        if self.count_LE is not None:
            layers = [module for module in model.modules() if isinstance(module, MoE)]
            for layer, count_E in zip(layers, self.count_LE, strict=True):
                if layer.gate.kind == "sigmoid":
                    layer.gate.balance(count_E, bias_update_rate)
        self.count_LE = None
