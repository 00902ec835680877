"""Whether an export computes what our model computes: logits and greedy text by plain transformers, in float32.

    verify_exportable(params.model, vocab_size)       # before training, in seconds
    compare(model, folder, vocab_size)                # a folder that was written, before it takes its place

Legend: B batch, T time, V vocabulary, N tokens, E experts.
"""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline import params
from pipeline.huggingface import weights
from pipeline.huggingface.classes import adapter_of
from pipeline.model import build, size

TOLERANCE = 1e-4  # largest difference of a logit, in float32
_TIE = 1e-5  # an expert is chosen by less than this (relative): rounding may choose another one
_VERIFIED_WHOLE = 20_000_000  # parameters up to which the very architecture is verified, not a narrower one


@dataclass(frozen=True)
class Parity:
    """How two models agree."""

    max_logit_difference: float
    positions: int  # that are equal
    near_ties: int  # that are not: rounding decided which expert they or an earlier one visit
    generated_equal: int  # greedy tokens that are the model's own, as are all before them
    generated: int  # greedy tokens in all


def verify_exportable(model: params.Model, vocab_size: int) -> str:
    """Export this architecture with random weights, load it by transformers, compare; return what was verified.

    A model of more than 20 million parameters is verified at smaller widths and fewer layers of each kind: what
    could differ is the structure. Raises RuntimeError where the two disagree.
    """
    verified, shrunk = model, ""
    if size.count(model, vocab_size).total > _VERIFIED_WHOLE:
        verified, vocab_size, shrunk = _narrow(model), min(vocab_size, 512), " (narrowed)"
    ours = build.build(verified, vocab_size)
    _randomize(ours)
    with tempfile.TemporaryDirectory(prefix="moe-verify-") as place:
        folder = Path(place)
        weights.write(ours, folder, ours.config.vocab_size, torch.float32, 5_000_000_000, {})
        parity = compare(ours, folder, ours.config.vocab_size)
    return (
        f"{adapter_of(model).name} loads an export of this architecture{shrunk}: {apart(parity.max_logit_difference)} "
        f"at {parity.positions} positions, {parity.generated_equal} of {parity.generated} greedy tokens equal"
    )


def apart(difference: float) -> str:
    """The largest difference of a logit in words."""
    return f"logits within {difference:.0e}" if difference else "logits equal bit for bit"


@torch.no_grad()
def compare(model: build.MoEGPT, folder: Path, vocab_size: int, seed: int = 0) -> Parity:
    """Logits and greedy generation of `model` against the transformers model in `folder`, both in float32 on the CPU.

    Where an expert wins by less than rounding errors, two right programs may route a token differently; so a
    difference is accepted from such a near tie on, if most positions are equal all the same. Raises RuntimeError on
    any other difference above `TOLERANCE`, and where a greedy token is not the model's own likeliest after the same
    tokens (or within `TOLERANCE` of it).
    """
    theirs: Any = load(folder)
    model = model.eval()
    length = min(model.config.block_size, 256)
    new = min(32, length // 2)
    idx_BT = torch.randint(vocab_size, (4, length), generator=torch.Generator().manual_seed(seed))
    logits_BTV, tied_BT = _logits(model, idx_BT, vocab_size)
    difference_BT = (logits_BTV - theirs(idx_BT).logits).abs().amax(-1)
    same_BT = difference_BT <= TOLERANCE  # False for NaN
    if (~same_BT & ~tied_BT).any() or same_BT.float().mean() < 0.5:
        worst = difference_BT.max().item()
        raise RuntimeError(f"{type(theirs).__name__} gives other logits than the model: they differ by {worst:.2e}")

    theirs.generation_config.eos_token_id = None  # go on to the full length
    plain = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
    generated_BT = theirs.generate(idx_BT[:, :new], generation_config=plain, attention_mask=torch.ones(4, new).long())
    logits_BTV, tied_BT = _logits(model, generated_BT[:, :-1], vocab_size)
    logits_BTV, tied_BT, next_BT = logits_BTV[:, new - 1 :], tied_BT[:, new - 1 :], generated_BT[:, new:]
    chosen_BT = logits_BTV.gather(-1, next_BT[..., None])[..., 0]
    greedy_BT = logits_BTV.amax(-1) - chosen_BT <= TOLERANCE
    if (~greedy_BT & ~tied_BT).any() or greedy_BT.float().mean() < 0.5:
        raise RuntimeError(f"{type(theirs).__name__} continues a prompt with other tokens than the model")
    # The model's own greedy text is the same up to the first token that it would not have chosen.
    own_BT = (logits_BTV.argmax(-1) == next_BT).long().cummin(dim=1).values
    return Parity(
        max_logit_difference=difference_BT[same_BT].max().item(),
        positions=int(same_BT.sum()),
        near_ties=int((~same_BT).sum()),
        generated_equal=int(own_BT.sum()),
        generated=own_BT.numel(),
    )


def load(folder: Path) -> PreTrainedModel:
    """The folder's model by plain transformers, in float32; RuntimeError if a weight is missing or left over."""
    options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    transformers_logging.disable_progress_bar()
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    theirs, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info[kind]:
            raise RuntimeError(f"{folder}: transformers reports {kind}: {sorted(info[kind])[:5]}")
    theirs.eval()
    return theirs


def rounded(model: build.MoEGPT, dtype: torch.dtype) -> build.MoEGPT:
    """`model` with its weights rounded to `dtype`, in float32 on the CPU; the model itself where nothing changes."""
    if dtype == torch.float32 and all(p.dtype == dtype and p.device.type == "cpu" for p in model.parameters()):
        return model
    same = copy.deepcopy(model).to("cpu")
    with torch.no_grad():
        for weight in same.parameters():
            weight.data = weight.to(dtype).float()
    return same


def _logits(model: build.MoEGPT, idx_BT: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Logits [B, T, vocab_size], and the positions from the first near tie of a router on [B, T]."""
    tied_BT = torch.zeros(idx_BT.shape, dtype=torch.bool)

    def watch(gate: Any, _: Any, output: Any) -> None:
        score_NE = output[2]
        if gate.kind == "sigmoid":
            score_NE = score_NE.sigmoid() + gate.e_score_correction_bias
        if gate.n_expert_per_token < score_NE.size(-1):
            best = score_NE.topk(gate.n_expert_per_token + 1).values
            gap_BT = (best[:, -2] - best[:, -1]).view(idx_BT.shape)
            tied_BT.logical_or_(gap_BT < _TIE * (1 + best.abs().amax(-1).view(idx_BT.shape)))

    hooks = [block.mlp.gate.register_forward_hook(watch) for block in model.transformer.h if hasattr(block.mlp, "gate")]
    try:
        logits_BTV = model(idx_BT)[..., :vocab_size]
    finally:
        for hook in hooks:
            hook.remove()
    return logits_BTV, tied_BT.cummax(dim=1).values


def _narrow(model: params.Model) -> params.Model:
    layers = min(model.n_layer, model.first_k_dense_replace + 2 * model.moe_every + 2)
    return model.model_copy(
        update={
            "vocab_size": None,
            "n_layer": layers,
            "n_embd": 64,
            "head_size": 16,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "block_size": min(model.block_size, 1024),
        }
    )


@torch.no_grad()
def _randomize(model: build.MoEGPT) -> None:
    """Weights of a size that keeps activations near 1, norms and router biases away from their first values."""
    draw = torch.Generator().manual_seed(0)
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if name in ("cos", "sin"):
            continue
        noise = torch.randn(weight.shape, generator=draw)
        if "norm" in name or name.endswith("ln_f.weight"):
            weight.copy_(1 + 0.1 * noise)
        elif weight.dim() == 1:  # a router's balancing bias
            weight.copy_(0.1 * noise)
        else:
            weight.copy_(noise / weight.shape[-1] ** 0.5)
