"""The evaluate stage's work: measure the trained model on the whole val set, beside baselines; show what was found.

    figures, details = evaluate(params, Path("models/litgpt"), Path("data/tokens"), Path("data/clean"), reports)
    present(details, reports, run, Path("reports"))

`figures` are the numbers of reports/evaluate.json; `details` is everything that the plots and the report show.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import console
from pipeline.errors import UserError
from pipeline.evaluate import baselines, harness, metrics, plots, previous, report, routing, samples, token_set
from pipeline.evaluate.memorisation import Index
from pipeline.evaluate.reports import at, read_curve
from pipeline.evaluate.scoring import Scores, Window, score
from pipeline.evaluate.token_set import TokenSet
from pipeline.files import written_whole
from pipeline.generate.generation import Generator
from pipeline.model import checkpoint_folder
from pipeline.model.device import resolve
from pipeline.model.layout import moe_layers
from pipeline.params import Evaluate, Params
from pipeline.tokens import tokenizer as vocabulary

_HELD_OUT = 40  # val documents whose overlap with the training text is what the samples' overlap is compared with
_LOSSY = "the tokenizer loses text (lossless: false in reports/tokenize.json), so its tokens do not stand for all bytes"


def evaluate(
    params: Params, checkpoint: Path, tokens: Path, clean: Path, reports: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the model of a checkpoint folder. `reports`: of the stages before, as `reports.read` gives them.

    With a tokenizer that loses text there are no bits per byte: `figures["not_comparable"]` says why.
    Raises UserError for folders that do not hold what they should, prompts that cannot be encoded, tasks that cannot
    be run.
    """
    config = params.evaluate
    tasks = harness.load(config.lm_eval_tasks)  # what cannot be run is refused now, not minutes later
    tokenizer, eos = vocabulary.load(checkpoint), vocabulary.eos_id(checkpoint)
    devices = _devices(config)
    model = checkpoint_folder.load(checkpoint, devices[0])
    generator = Generator(model, checkpoint)
    val = _fitting(token_set.whole(tokens / "val", clean / "val"), tokens / "val", model.config.padded_vocab_size)
    prompts = config.prompts or samples.beginnings(val.texts, generator.context // 2, generator.continues)
    for prompt in prompts:
        generator.check(prompt)
    window = Window(params.train.block_size, config.stride)
    lossy = at(reports, "tokenize", "tokenizer", "lossless") is False
    if lossy:
        console.warn(f"no bits per byte: {_LOSSY}")

    def scored(what: str, part: TokenSet) -> tuple[Scores, dict[str, Any]]:
        with console.progress(what, len(part.tokens_N) - 1, "tokens") as advance:
            mask = eos if params.train.document_mask else None
            scores = score(model, part.tokens_N, window, config.batch_size, devices, mask, advance)
        summary = metrics.summary(scores, part.n_bytes)
        return scores, {name: value for name, value in summary.items() if name != "bits_per_byte" or not lossy}

    scores, summary = scored("evaluating val", val)
    figures: dict[str, Any] = {"val": summary}
    details: dict[str, Any] = metrics.breakdown(val, scores) | {"val_set": val.digests()}
    name = partial(tokenizer.decode, skip_special_tokens=False)
    details["routing"] = routing.describe(
        scores.choices_NLK, val.tokens_N[:-1], model.config.n_expert, moe_layers(model.params), lambda id: name([id])
    )
    if details["routing"]:
        figures["routing"] = routing.summary(details["routing"])
    if config.train_sample_tokens:
        train = token_set.sample(tokens / "train", tokenizer, config.train_sample_tokens)
        train = _fitting(train, tokens / "train", model.config.padded_vocab_size)
        figures["train_sample"] = scored("evaluating a sample of train", train)[1]
    if lossy:
        figures["not_comparable"] = _LOSSY
    else:
        entropy = at(reports, "download", "entropy_bits_per_byte")
        if isinstance(entropy, float):
            gap = summary["bits_per_byte"] - entropy
            figures["generator"] = {"entropy_bits_per_byte": entropy, "gap_bits_per_byte": gap}
        if config.baseline_bytes:
            train = token_set.beginning(tokens / "train", clean / "train", config.baseline_bytes)
            train = _fitting(train, tokens / "train", model.config.padded_vocab_size)
            figures["baselines"] = baselines.bits_per_byte(
                train, val, config.ngram_order, model.config.padded_vocab_size
            )
    details["samples"] = _samples(config, prompts, generator, val, tokens, clean)
    figures["samples"] = samples.means(details["samples"])
    if tasks:
        figures["lm_eval"] = harness.run(model, checkpoint, tasks, devices[0], config.batch_size)
    return figures, {"figures": figures, "params": params.model_dump(mode="json", exclude={"export"}), **details}


def _devices(params: Evaluate) -> list[torch.device]:
    device = resolve(params.device, "evaluate.device")
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if params.devices > found:
        raise UserError(f"evaluate.devices: {params.devices} on {device}; allowed here: 1 to {found}")
    return [torch.device("cuda", i) for i in range(params.devices)] if device.type == "cuda" else [device]


def _fitting(part: TokenSet, folder: Path, vocab_size: int) -> TokenSet:
    """The token set, if the model knows all its tokens; UserError where it was made with another tokenizer."""
    if (largest := int(part.tokens_N.max())) >= vocab_size:
        raise UserError(
            f"{folder} holds the token {largest:,}, the model has {vocab_size:,}; run: dvc repro train, or tokenize "
            "with the model's tokenizer"
        )
    return part


def _samples(
    config: Evaluate, prompts: list[str], generator: Generator, val: TokenSet, tokens: Path, clean: Path
) -> dict[str, Any]:
    index = None
    if config.memorisation_bytes:
        index = Index(token_set.beginning(tokens / "train", clean / "train", config.memorisation_bytes).tokens_N)
    total = len(prompts) * sum(config.samples_per_prompt if t > 0 else 1 for t in config.temperatures)
    with console.progress("sampling", total, "stories") as advance:
        drawn = samples.generate(generator, config, prompts, advance)
    described = samples.describe(drawn, generator.tokenizer, index)
    described["inspected"] = samples.inspected(drawn, generator)
    if index is not None:
        every = max(1, len(val.texts) // _HELD_OUT)
        lengths = [story["length"] for story in described["stories"]]
        held_out = val.texts[::every][:_HELD_OUT]
        described["held_out_overlap"] = samples.overlaps(held_out, generator.tokenizer, index, lengths)
    return described


def present(
    details: dict[str, Any], stages: dict[str, dict[str, Any]], run: dict[str, str | None], reports: Path
) -> None:
    """Write plots/evaluate/ (pictures, their CSV, details.json) and report.html to the folder of reports.

    `run`: what the report says of itself, see sections.Evaluation.
    """
    written = reports / "plots" / "evaluate"
    before = previous.recorded(written / "details.json")
    curve = read_curve(reports / "plots" / "train")
    with written_whole(written) as partial_folder:
        pictures = plots.draw(details, curve, partial_folder)
        text = json.dumps(details, indent=1, ensure_ascii=False) + "\n"
        (partial_folder / "details.json").write_text(text, encoding="utf-8")
    report.write(reports / "report.html", report.Evaluation(details, stages, before, run), pictures)
