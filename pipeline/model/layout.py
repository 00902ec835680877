"""Which layers of a model hold experts. Imports no torch, so that checking the parameters stays quick."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.params import Model


def moe_layers(model: "Model") -> list[int]:
    """Indices (from 0) of the layers that hold experts."""
    if not model.n_expert:
        return []
    return [i for i in range(model.first_k_dense_replace, model.n_layer) if (i + 1) % model.moe_every == 0]
