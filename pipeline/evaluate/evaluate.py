"""The evaluate stage's work: measure the trained model on the whole val set, beside baselines.

    figures, details = evaluate(params, Path("models/litgpt"), Path("data/tokens"), Path("data/clean"))

`figures` are the numbers that `dvc metrics` compares; `details` is everything that the plots and the report show.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from pipeline import console
from pipeline.errors import UserError
from pipeline.evaluate import baselines, harness, metrics, plots, previous, report, routing, samples, token_set
from pipeline.evaluate.memorisation import Index
from pipeline.evaluate.token_set import TokenSet
from pipeline.files import written_whole
from pipeline.generate.generation import Generator
from pipeline.model import checkpoint_folder
from pipeline.model.build import MoEGPT
from pipeline.model.device import resolve
from pipeline.model.layout import moe_layers
from pipeline.params import Evaluate, Params
from pipeline.tokens import tokenizer as vocabulary

_LENGTH_BINS = 8
_HELD_OUT = 40  # val documents whose overlap with the training text is what the stories' overlap is compared with


def evaluate(
    params: Params, checkpoint: Path, tokens: Path, clean: Path, entropy: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the model of a checkpoint folder.

    `entropy`: bits per byte that the text's own generator put into it, where that is known. Raises UserError for
    folders that do not hold what they should, prompts that cannot be encoded, tasks that cannot be run.
    """
    config = params.evaluate
    harness.check(config.lm_eval_tasks)
    tokenizer, end = vocabulary.load(checkpoint), vocabulary.eos_id(checkpoint)
    devices = _devices(config)
    model = checkpoint_folder.load(checkpoint, devices[0])
    generator = Generator(model, checkpoint)
    for prompt in config.prompts:
        generator.check(prompt)  # one that cannot be continued is refused now, not minutes later
    window = metrics.Window(params.train.block_size, config.stride)

    def scored(what: str, part: TokenSet) -> metrics.Scores:
        with console.progress(what, len(part.tokens_N) - 1, "tokens") as advance:
            mask = end if params.train.document_mask else None
            return metrics.score(model, part.tokens_N, window, config.batch_size, devices, mask, advance)

    val = token_set.whole(tokens / "val", clean / "val")
    scores = scored("evaluating val", val)
    figures: dict[str, Any] = {"val": metrics.summary(scores, val.n_bytes)}
    details = _val_details(val, scores, tokenizer, model)
    if details["routing"]:
        figures["routing"] = _routing_figures(details["routing"])
    if config.train_sample_tokens:
        train = token_set.sample(tokens / "train", tokenizer, config.train_sample_tokens)
        figures["train_sample"] = metrics.summary(scored("evaluating a sample of train", train), train.n_bytes)
    if entropy is not None:
        gap = figures["val"]["bits_per_byte"] - entropy
        figures["generator"] = {"entropy_bits_per_byte": entropy, "gap_bits_per_byte": gap}
    if config.baseline_bytes:
        figures["baselines"] = _baselines(config, model.config.padded_vocab_size, val, tokens, clean)
    details["samples"] = _samples(config, generator, val, tokens, clean)
    figures["samples"] = _samples_figures(details["samples"])
    if config.lm_eval_tasks:
        figures["lm_eval"] = harness.run(model, checkpoint, config.lm_eval_tasks, devices[0], config.batch_size)
    return figures, {"figures": figures, "params": params.model_dump(mode="json", exclude={"export"}), **details}


def _devices(params: Evaluate) -> list[torch.device]:
    device = resolve(params.device, "evaluate.device")
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if params.devices > found:
        raise UserError(f"evaluate.devices: {params.devices} on {device}; allowed here: 1 to {found}")
    return [torch.device("cuda", i) for i in range(params.devices)] if device.type == "cuda" else [device]


def _val_details(val: TokenSet, scores: metrics.Scores, tokenizer: Tokenizer, model: MoEGPT) -> dict[str, Any]:
    document_N = val.document_N[1:]  # of the scored tokens
    names, source_D = np.unique(val.sources, return_inverse=True)
    sources = metrics.loss_by_group(scores, source_D[document_N], np.bincount(source_D, weights=val.bytes_D))
    edges = np.unique(np.quantile(val.lengths_D, np.linspace(0, 1, _LENGTH_BINS + 1)).astype(np.int64))
    bin_D = np.clip(np.searchsorted(edges, val.lengths_D, side="right") - 1, 0, max(len(edges) - 2, 0))
    lengths = metrics.loss_by_group(scores, bin_D[document_N], np.bincount(bin_D, weights=val.bytes_D))
    for group in sources:
        group["source"] = str(names[int(group.pop("group"))])
    for group in lengths:
        g = int(group.pop("group"))
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
            moe_layers(model.params),
            lambda token: tokenizer.decode([token], skip_special_tokens=False),
        ),
    }


def _routing_figures(described: dict[str, Any]) -> dict[str, float]:
    return {
        "dead_experts": sum(described["dead_experts"]),
        "min_load_entropy": min(described["load_entropy"]),
        "max_violation": max(described["max_violation"]),
    }


def _baselines(params: Evaluate, vocab_size: int, val: TokenSet, tokens: Path, clean: Path) -> dict[str, Any]:
    """Bits per byte of everything the model is compared with."""
    train = token_set.beginning(tokens / "train", clean / "train", params.baseline_bytes)
    kneser_ney = baselines.KneserNey(train.tokens_N, params.ngram_order, vocab_size)
    totals = {
        "unigram": baselines.unigram_nats(train.tokens_N, val.tokens_N, vocab_size).sum(),
        f"kneser_ney_{params.ngram_order}": kneser_ney.nats(val.tokens_N).sum(),
    }
    found = {name: metrics.bits_per_byte(float(total), val.n_bytes) for name, total in totals.items()}
    return found | baselines.compressors(val.texts, train.texts)


def _samples(config: Evaluate, generator: Generator, val: TokenSet, tokens: Path, clean: Path) -> dict[str, Any]:
    index = None
    if config.memorisation_bytes:
        index = Index(token_set.beginning(tokens / "train", clean / "train", config.memorisation_bytes).tokens_N)
    total = len(config.prompts) * sum(config.samples_per_prompt if t > 0 else 1 for t in config.temperatures)
    with console.progress("telling stories", total, "stories") as advance:
        told = samples.tell(generator, config, advance)
    described = samples.describe(told, generator.tokenizer, index)
    if index is not None:
        every = max(1, len(val.texts) // _HELD_OUT)
        held_out = val.texts[::every][:_HELD_OUT]
        lengths = [story["length"] for story in described["stories"]]
        described["held_out_overlap"] = samples.overlaps(held_out, generator.tokenizer, index, lengths)
    return described


def _samples_figures(described: dict[str, Any]) -> dict[str, float]:
    """Means over all temperatures but greedy's, whose few stories say little; greedy's where there are no others."""
    random = [f for f in described["by_temperature"] if f["temperature"] > 0] or described["by_temperature"]
    names = [name for name in random[0] if name not in ("temperature", "stories", "overlap_max")]
    return {name: float(np.mean([figures[name] for figures in random])) for name in names}


def present(details: dict[str, Any], stages: dict[str, Any], reports: Path) -> None:
    """Write plots/evaluate/ (pictures, their CSV, details.json) and report.html to the folder of reports."""
    written = reports / "plots" / "evaluate"
    before = previous.recorded(written / "details.json")
    curve = report.read_curve(reports / "plots" / "train" / "loss.csv")
    with written_whole(written) as partial:
        pictures = plots.draw(details, curve, partial)
        text = json.dumps(details, indent=1, ensure_ascii=False) + "\n"
        (partial / "details.json").write_text(text, encoding="utf-8")
    report.write(reports / "report.html", details, pictures, stages, before)
