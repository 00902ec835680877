"""Activation checkpointing: a block's activations are not kept, but computed again in backward (Chen et al. 2016)."""

from typing import Any

import torch
from litgpt.model import Block
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: nn.Module) -> None:
    """Let every transformer block keep only its input. Weights and names stay as they are."""
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        block.forward = _Recomputed(block.forward)  # type: ignore[method-assign]


class _Recomputed:
    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args)
        return checkpoint(self._forward, *args, use_reentrant=False, preserve_rng_state=False)  # nothing draws
