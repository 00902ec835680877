"""The evaluate stage's work: measure the trained model on the whole val set, against references, and say what it means.

    figures, details = evaluate(params, Path("models/litgpt"), Path("data/tokens"), Path("data/clean"))

`figures` are the numbers that `dvc metrics` compares; `details` is everything that the plots and the report show.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from pipeline import console
from pipeline.corpus import tokenizer as vocabulary
from pipeline.errors import UserError
from pipeline.evaluation import metrics, references, routing, token_set
from pipeline.evaluation.token_set import TokenSet
from pipeline.model import checkpoint_folder
from pipeline.model.build import MoEGPT
from pipeline.params import Evaluate, Params

_LENGTH_BINS = 8


def evaluate(params: Params, checkpoint: Path, tokens: Path, clean: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the model of a checkpoint folder. Raises UserError for folders that do not hold what they should."""
    tokenizer = vocabulary.load(checkpoint)
    end = vocabulary.end_id(checkpoint)
    devices = _devices(params.evaluate)
    model = checkpoint_folder.load(checkpoint, devices[0])
    window = metrics.Window(params.train.block_size, params.evaluate.stride)

    def scored(what: str, part: TokenSet) -> metrics.Scores:
        with console.progress(what, len(part.tokens_N) - 1, "tokens") as advance:
            mask = end if params.train.document_mask else None
            return metrics.score(model, part.tokens_N, window, params.evaluate.batch_size, devices, mask, advance)

    val = token_set.whole(tokens / "val", clean / "val")
    scores = scored("evaluating val", val)
    figures: dict[str, Any] = {"val": metrics.summary(scores, val.n_bytes)}
    details = _val_details(val, scores, tokenizer, model)
    if params.evaluate.train_sample_tokens:
        train = token_set.sample(tokens / "train", tokenizer, params.evaluate.train_sample_tokens)
        figures["train_sample"] = metrics.summary(scored("evaluating a sample of train", train), train.n_bytes)
    if details["routing"]:
        figures["routing"] = _routing_figures(details["routing"])
    if params.evaluate.reference_bytes:
        figures["references"] = _references(params.evaluate, model.config.padded_vocab_size, val, tokens, clean)
    return figures, details


def _devices(params: Evaluate) -> list[torch.device]:
    kind = params.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cpu" or kind == "mps":
        if params.devices > 1:
            raise UserError(f"evaluate.devices: {params.devices} on {kind}; allowed: 1 (more only on device: cuda)")
        return [torch.device(kind)]
    found = torch.cuda.device_count()
    if params.devices > found:
        raise UserError(f"evaluate.devices: {params.devices}; {found} CUDA devices are here")
    return [torch.device("cuda", i) for i in range(params.devices)]


def _val_details(val: TokenSet, scores: metrics.Scores, tokenizer: Tokenizer, model: MoEGPT) -> dict[str, Any]:
    document_N = val.document_N[1:]  # of the scored tokens
    names, source_D = np.unique(val.sources, return_inverse=True)
    sources = metrics.loss_by_group(scores, source_D[document_N], np.bincount(source_D, weights=val.bytes_D))
    edges = np.unique(np.quantile(val.lengths_D, np.linspace(0, 1, _LENGTH_BINS + 1)).astype(np.int64))
    bin_D = np.clip(np.searchsorted(edges, val.lengths_D, side="right") - 1, 0, max(len(edges) - 2, 0))
    lengths = metrics.loss_by_group(scores, bin_D[document_N], np.bincount(bin_D, weights=val.bytes_D))
    for group in sources:
        group["source"] = str(names[group.pop("group")])
    for group in lengths:
        g = group.pop("group")
        group |= {"shortest": int(val.lengths_D[bin_D == g].min()), "longest": int(val.lengths_D[bin_D == g].max())}
        group["documents"] = int((bin_D == g).sum())
    return {
        "by_position": metrics.loss_by_position(scores),
        "by_length": lengths,
        "by_source": sources,
        "calibration": metrics.calibration(scores),
        "routing": routing.describe(
            scores.choices_NLK,
            val.tokens_N[:-1],
            model.config.n_expert,
            model.params.moe_layers,
            lambda token: tokenizer.decode([token], skip_special_tokens=False),
        ),
    }


def _routing_figures(described: dict[str, Any]) -> dict[str, float]:
    return {
        "dead_experts": sum(described["dead_experts"]),
        "min_load_entropy": min(described["load_entropy"]),
        "max_violation": max(described["max_violation"]),
    }


def _references(params: Evaluate, vocab_size: int, val: TokenSet, tokens: Path, clean: Path) -> dict[str, Any]:
    train = token_set.beginning(tokens / "train", clean / "train", params.reference_bytes)
    kneser_ney = references.KneserNey(train.tokens_N, params.ngram_order, vocab_size)
    totals = {
        "unigram": references.unigram_nats(train.tokens_N, val.tokens_N, vocab_size).sum(),
        f"kneser_ney_{params.ngram_order}": kneser_ney.nats(val.tokens_N).sum(),
    }
    found = {name: metrics.bits_per_byte(float(total), val.n_bytes) for name, total in totals.items()}
    return found | references.compressors(val.texts, train.texts)
