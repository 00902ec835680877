"""Which experts a token is routed to, and what there is to know about it: the router and its statistics.

    model(idx_BT); layers = routing(model)       # after a training forward: a Routing of each MoE layer
    totals.add(layers); totals.read()            # over many forwards: a RoutingStats of each MoE layer

Legend: N tokens, C embedding, E experts, K experts of a token, L MoE layers.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Routing(NamedTuple):
    """What one layer's router did in one forward; tensors on the device, so that reading them costs no wait.

    `probability_E` and `z` carry gradients to the router; they are what the auxiliary losses are made of.
    """

    count_E: Tensor  # tokens of each expert, int64
    probability_E: Tensor  # mean over the tokens of the router's distribution
    z: Tensor  # mean over the tokens of logsumexp(logits)^2
    entropy: Tensor  # mean entropy of a token's distribution, nats
    confidence: Tensor  # mean probability of the likeliest expert


class Router(nn.Module):
    """Scores the experts for each token, in float32 whatever the model's precision.

    softmax: the K largest of a softmax, as in Mixtral (normalized) and Qwen3-MoE (either).
    sigmoid: independent scores, chosen by score + bias, weighted by score alone (DeepSeek-V3, arXiv 2412.19437
    section 2.1.2). `balance` moves the bias between steps. Parameter names are those of litgpt's routers.
    """

    e_score_correction_bias: Tensor  # with kind sigmoid only

    def __init__(self, n_embd: int, n_expert: int, n_expert_per_token: int, kind: str, normalize: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_expert, n_embd))
        nn.init.normal_(self.weight, std=0.02)
        self.n_expert_per_token = n_expert_per_token
        self.normalize = normalize
        self.kind = kind
        if kind == "sigmoid":
            self.register_buffer("e_score_correction_bias", torch.zeros(n_expert, dtype=torch.float32))

    def forward(self, x_NC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the chosen experts' weights [N, K] and indices [N, K], the logits [N, E] and distribution [N, E]."""
        kind = x_NC.device.type
        with torch.autocast(kind, enabled=False) if autocast_is_on(kind) else nullcontext():
            logits_NE = F.linear(x_NC.float(), self.weight.float())
            if self.kind == "sigmoid":
                score_NE = logits_NE.sigmoid()
                index_NK = (score_NE.detach() + self.e_score_correction_bias).topk(self.n_expert_per_token, -1).indices
                probability_NE = score_NE / (score_NE.sum(-1, keepdim=True) + 1e-20)
            else:
                index_NK = logits_NE.topk(self.n_expert_per_token, -1).indices
                probability_NE = score_NE = logits_NE.softmax(-1)
            weight_NK = score_NE.gather(-1, index_NK)
            if self.normalize:
                weight_NK = weight_NK / (weight_NK.sum(-1, keepdim=True) + 1e-20)
        return weight_NK, index_NK, logits_NE, probability_NE

    @torch.no_grad()
    def balance(self, count_E: Tensor, rate: float) -> None:
        """Move the bias by `rate` up for experts with less than the mean load, down for those with more.

        `count_E`: tokens that each expert saw in the last global batch (arXiv 2408.15664, algorithm 1).
        """
        count_E = count_E.float()
        self.e_score_correction_bias += rate * torch.sign(count_E.mean() - count_E)


def autocast_is_on(device_type: str) -> bool:
    """Whether autocast is on for the device; the meta device, on which models are counted, has none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def observe(count_E: Tensor, logits_NE: Tensor, probability_NE: Tensor) -> Routing:
    """Sum up one forward of one router."""
    with torch.no_grad():
        entropy = -torch.special.xlogy(probability_NE, probability_NE).sum(-1).mean()
        confidence = probability_NE.amax(-1).mean()
    z = logits_NE.logsumexp(-1).square().mean()
    return Routing(count_E, probability_NE.mean(0), z, entropy, confidence)


def routing(model: nn.Module) -> list[Routing]:
    """Of each MoE layer, in order, what its router did in the last forward in training mode.

    Read it right after the forward: activation checkpointing runs forwards again during backward.
    """
    found = (getattr(module, "routing", None) for module in model.modules())
    return [layer for layer in found if isinstance(layer, Routing)]


def entropy(count_X: np.ndarray) -> float:
    """Entropy in nats of the distribution that counts (or shares) are proportional to; 0 log 0 is 0."""
    share_X = count_X[count_X > 0] / count_X.sum()
    return float(-(share_X * np.log(share_X)).sum())


def load_entropy(tokens_per_expert: Sequence[int]) -> float:
    """Entropy of the load over log(E): 1 is even, 0 is one expert for all."""
    n_expert = len(tokens_per_expert)
    return entropy(np.asarray(tokens_per_expert)) / math.log(n_expert) if n_expert > 1 else 1.0


def max_violation(tokens_per_expert: Sequence[int]) -> float:
    """Largest load over the mean load, less 1 (MaxVio of arXiv 2408.15664): 0 is even."""
    return max(tokens_per_expert) / max(1, sum(tokens_per_expert)) * len(tokens_per_expert) - 1


@dataclass(frozen=True)
class RoutingStats:
    """One layer's routing over some steps, as numbers."""

    tokens_per_expert: list[int]
    probability: list[float]  # mean of the router's distribution
    router_entropy: float  # mean entropy of a token's distribution over log(E)
    confidence: float  # mean probability of the likeliest expert

    @property
    def load_entropy(self) -> float:
        return load_entropy(self.tokens_per_expert)

    @property
    def max_violation(self) -> float:
        return max_violation(self.tokens_per_expert)

    @property
    def dead_experts(self) -> int:
        return self.tokens_per_expert.count(0)


class RoutingTotals:
    """Adds up routing over forwards on the device; `read` is the only wait."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._forwards = 0
        self._count_LE: Tensor | None = None
        self._mean_LX: Tensor | None = None  # probability, entropy and confidence side by side

    @torch.no_grad()
    def add(self, layers: list[Routing]) -> None:
        if not layers:
            return
        count_LE = torch.stack([layer.count_E for layer in layers])
        mean_LX = torch.stack([torch.cat([r.probability_E, r.entropy[None], r.confidence[None]]) for r in layers])
        self._count_LE = count_LE if self._count_LE is None else self._count_LE + count_LE
        self._mean_LX = mean_LX if self._mean_LX is None else self._mean_LX + mean_LX
        self._forwards += 1

    def read(self) -> list[RoutingStats]:
        """Statistics of each MoE layer since the last reset, over all ranks (so every rank must call it)."""
        if self._count_LE is None or self._mean_LX is None:
            return []
        count_LE, mean_LX = self._count_LE.clone(), self._mean_LX / self._forwards
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count_LE)
            torch.distributed.all_reduce(mean_LX)
            mean_LX /= torch.distributed.get_world_size()
        return [_stats(count, mean) for count, mean in zip(count_LE.tolist(), mean_LX.tolist(), strict=True)]


def _stats(count: list[int], mean: list[float]) -> RoutingStats:
    *probability, router_entropy, confidence = mean
    even = math.log(len(count)) if len(count) > 1 else 1.0
    return RoutingStats(count, probability, router_entropy / even if len(count) > 1 else 1.0, confidence)
