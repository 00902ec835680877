"""What the experts do with a token set: load, dead experts, top tokens, and how far layers agree.

    with watched_choices(model) as choices:
        model.hidden(idx_BT)
    choices_NLK = choices.gathered(scored_BT)
    report = describe(choices_NLK, tokens_N, n_expert=8, moe_layers=[0, 1, 2, 3], name=lambda token: "…")

An assignment is a token that a layer gives to one of its experts (each token makes K of them a layer).
Dimensions: B windows, T tokens in a window, N scored tokens, L layers with experts, E experts, K experts of a token,
V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.model.routing import Router, entropy, load_entropy, max_violation

_TOP_TOKENS = 8  # named for each expert


@dataclass
class Choices:
    """The experts that each MoE layer chose in one forward, in the order of the layers."""

    index_NK: list[torch.Tensor] = field(default_factory=list)

    def gathered(self, scored_BT: np.ndarray) -> np.ndarray:
        """[N, L, K] of the positions that `scored_BT` marks, row by row; L = K = 0 for a dense model."""
        if not self.index_NK:
            return np.zeros((int(scored_BT.sum()), 0, 0), np.uint16)
        index_NLK = torch.stack(self.index_NK, dim=1).to(torch.int16).cpu().numpy().view(np.uint16)
        return index_NLK[scored_BT.reshape(-1)]


@contextmanager
def watched_choices(model: nn.Module) -> Iterator[Choices]:
    """Collect what the routers choose during the forward in the block."""
    choices = Choices()
    routers = [module for module in model.modules() if isinstance(module, Router)]
    hooks = [router.register_forward_hook(lambda _m, _in, out: choices.index_NK.append(out[1])) for router in routers]
    try:
        yield choices
    finally:
        for hook in hooks:
            hook.remove()


def describe(
    choices_NLK: np.ndarray, tokens_N: np.ndarray, n_expert: int, moe_layers: list[int], name: Callable[[int], str]
) -> dict[str, Any]:
    """Everything the report shows about routing, a list entry for each layer; {} for a dense model.

    `tokens_N[i]` is the token that made the choices `choices_NLK[i]`; `name` gives its text. `load[l][e]` is the share
    of layer l's assignments that expert e has, `agreement[l][m]` how far the first choices of two layers go together.
    """
    if not choices_NLK.size:
        return {}
    by_layer = [choices_NLK[:, layer] for layer in range(choices_NLK.shape[1])]
    assignments_LE = np.stack([np.bincount(choices_NK.ravel(), minlength=n_expert) for choices_NK in by_layer])
    assignments = assignments_LE.tolist()
    return {
        "layers": moe_layers,
        "assignments": assignments,
        "load": (assignments_LE / assignments_LE.sum(axis=1, keepdims=True)).tolist(),
        "load_entropy": [load_entropy(count) for count in assignments],
        "max_violation": [max_violation(count) for count in assignments],
        "dead_experts": [count.count(0) for count in assignments],
        "agreement": [[agreement(a_NK[:, 0], b_NK[:, 0]) for b_NK in by_layer] for a_NK in by_layer],
        "token_information": [token_information(choices_NK[:, 0], tokens_N) for choices_NK in by_layer],
        "top_tokens": [top_tokens(choices_NK, tokens_N, n_expert, name) for choices_NK in by_layer],
    }


def summary(described: dict[str, Any]) -> dict[str, float]:
    """The headline figures: the worst layer's."""
    return {
        "dead_experts": sum(described["dead_experts"]),
        "min_load_entropy": min(described["load_entropy"]),
        "max_violation": max(described["max_violation"]),
    }


def agreement(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Mutual information of two labellings over the geometric mean of their entropies: 0 unrelated, 1 the same.

    Experts have no common numbering between layers, so only what one choice says about the other can be compared
    (normalized mutual information, Strehl and Ghosh 2002). A labelling that never varies agrees with nothing: 0.
    """
    joint = np.zeros((int(a_N.max()) + 1, int(b_N.max()) + 1))
    np.add.at(joint, (a_N, b_N), 1)
    entropy_a, entropy_b = entropy(joint.sum(axis=1)), entropy(joint.sum(axis=0))
    if not entropy_a or not entropy_b:
        return 0.0
    return max(0.0, (entropy_a + entropy_b - entropy(joint.ravel())) / math.sqrt(entropy_a * entropy_b))


def token_information(expert_N: np.ndarray, tokens_N: np.ndarray) -> float:
    """Share of the uncertainty about the expert that knowing the token takes away: I(expert; token) / H(expert)."""
    of_expert = entropy(np.bincount(expert_N))
    if not of_expert:
        return 0.0
    token = np.unique(tokens_N, return_counts=True)[1]
    joint = np.unique(tokens_N * (int(expert_N.max()) + 1) + expert_N, return_counts=True)[1]
    return (of_expert + entropy(token) - entropy(joint)) / of_expert


def top_tokens(
    choices_NK: np.ndarray, tokens_N: np.ndarray, n_expert: int, name: Callable[[int], str]
) -> list[list[dict[str, Any]]]:
    """For each expert the tokens it takes more than its share of, highest weight first.

    Weight: assignments × log(share of the token's assignments that this expert has / its share of all). That is what
    the token adds to the mutual information of token and expert, so rare tokens and tokens that go everywhere rank low.
    """
    vocabulary, token_N = np.unique(tokens_N, return_inverse=True)
    assignments_VE = np.zeros((len(vocabulary), n_expert))
    for k in range(choices_NK.shape[1]):
        np.add.at(assignments_VE, (token_N, choices_NK[:, k]), 1)
    share_VE = assignments_VE / assignments_VE.sum(axis=1, keepdims=True)
    load_E = assignments_VE.sum(axis=0) / assignments_VE.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        weight_VE = np.nan_to_num(assignments_VE * np.log(share_VE / load_E), neginf=0.0)

    def shown(v: int, e: int) -> dict[str, Any]:
        share = float(share_VE[v, e])
        return {"token": name(int(vocabulary[v])), "assignments": int(assignments_VE[v, e]), "share": share}

    best_VE = np.argsort(-weight_VE, axis=0, kind="stable")[:_TOP_TOKENS]
    return [[shown(v, e) for v in best_VE[:, e] if weight_VE[v, e] > 0] for e in range(n_expert)]
