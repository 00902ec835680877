"""Beginning with the weights of another model: of the same architecture, or refused with the fields that differ."""

from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.model import checkpoint_folder
from pipeline.model.build import MoEGPT
from pipeline.model.layout import moe_layers

# What the shapes of the weights do not tell, and what they compute depends on.
_OF_CONFIG = (
    *("n_head", "head_size", "n_query_groups", "norm_eps", "norm_qk", "rope_base", "rope_adjustments"),
    *("n_expert_per_token", "routed_scaling_factor"),
)
# What they do tell; named where a shape differs.
_OF_SHAPES = (
    *("n_layer", "n_embd", "padded_vocab_size", "intermediate_size", "n_expert", "moe_intermediate_size"),
    *("n_shared_expert", "first_k_dense_replace"),
)


def take_weights(gpt: MoEGPT, folder: Path) -> None:
    """Begin with the weights of a litgpt folder. Raises UserError where it holds another architecture."""
    other = checkpoint_folder.load(folder)
    weights = other.state_dict()
    fits = {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in gpt.state_dict().items()}
    differing = _differences(gpt, other, shapes=not fits)
    if differing or not fits:
        what = "; ".join(differing) or "its layers are of other kinds"
        raise UserError(
            f"train.initial_checkpoint = {folder} is of another model: {what}. Set model to what it is, or "
            "train.initial_checkpoint to null"
        )
    gpt.load_state_dict(weights)


def _differences(gpt: MoEGPT, other: MoEGPT, shapes: bool) -> list[str]:
    """One line a field: `rope_base: 10000 there, 50000 here`."""
    pairs: list[tuple[str, Any, Any]] = [
        (name, getattr(other.config, name), getattr(gpt.config, name))
        for name in (*_OF_CONFIG, *(_OF_SHAPES if shapes else ()))
    ]
    pairs.append(("tie_embeddings", _tied(other), gpt.params.tie_embeddings))
    if moe_layers(gpt.params) and moe_layers(other.params):
        for name in ("router", "norm_topk_prob", *(("moe_every",) if shapes else ())):
            pairs.append((name, getattr(other.params, name), getattr(gpt.params, name)))
    return [f"{name}: {there} there, {here} here" for name, there, here in pairs if there != here]


def _tied(gpt: MoEGPT) -> bool:
    """litgpt writes two matrices also where they are one; equal ones were."""
    return gpt.params.tie_embeddings or bool(gpt.lm_head.weight.equal(gpt.transformer.wte.weight))
