"""reports/report.html: one page, whole in itself, that shows an evaluation to a person on a phone or a desk.

    write(Path("reports/report.html"), details, pictures, stages, before)

`details` from evaluate.evaluate, `pictures` from plots.draw, `stages` the reports of the stages before (`read_stages`),
`before` the details of the run it is compared with. Nothing is fetched: style and pictures stand in the page.
"""

import csv
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline import console
from pipeline.evaluate import previous
from pipeline.files import written_whole

# What is compared with the run before: figure, name, whether less is better (None: neither), digits.
_COMPARED: list[tuple[str, str, bool | None, int]] = [
    ("val.bits_per_byte", "bits per byte", True, 4),
    ("val.loss", "loss, nats per token", True, 4),
    ("val.perplexity", "perplexity", True, 3),
    ("val.accuracy", "next token right", False, 4),
    ("val.calibration_error", "calibration error", True, 4),
    ("train_sample.loss", "loss on a sample of train", None, 4),
    ("generator.gap_bits_per_byte", "above the generator's entropy, bits per byte", True, 4),
    ("routing.min_load_entropy", "least even layer (1: even)", False, 3),
    ("routing.dead_experts", "dead experts", True, 0),
    ("samples.ends", "stories that end properly", False, 3),
    ("samples.distinct_2", "different word pairs", None, 3),
    ("samples.repetition", "repetition", True, 3),
    ("samples.overlap_mean", "longest overlap with train, tokens", None, 1),
]
_BASELINES = {
    "unigram": "unigrams",
    "gzip": "gzip -9",
    "xz": "xz -9e",
    "zstd": "zstd, long window",
    "zstd_with_training_text": "zstd that has the training text",
}


def read_stages(reports: Path) -> dict[str, Any]:
    """What download, clean, tokenize and train reported; {} for a stage whose report is not there."""
    found: dict[str, Any] = {}
    for name in ("download", "clean", "tokenize", "train"):
        path = reports / f"{name}.json"
        found[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of the training run's loss.csv, cells that are empty left out; [] without the file.

    `loss` is the language model's alone where the file tells it apart (`lm_loss`).
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    for row in rows:
        if "lm_loss" in row:
            row["loss"] = row["lm_loss"]
    return [row for row in rows if "tokens" in row]


def write(
    into: Path,
    details: dict[str, Any],
    pictures: dict[str, str],
    stages: dict[str, Any],
    before: dict[str, Any] | None,
) -> None:
    """Render the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.evaluate", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "n": _number,
        "pct": lambda x, digits=1: f"{100 * x:.{digits}f}\N{NARROW NO-BREAK SPACE}%",
        "marked": _marked,
    }
    page = environment.get_template("report.html.jinja").render(
        figures=details["figures"],
        details=details,
        pictures={name: Markup(svg) for name, svg in pictures.items()},
        facts=facts(details, stages),
        baselines=baselines(details["figures"]),
        prompts=_by_prompt(details["samples"]["stories"]),
        compared=compared(before["figures"], details["figures"]) if before else [],
        changed=previous.changes(before["params"], details["params"]) if before else [],
        has_before=before is not None,
    )
    with written_whole(into) as partial:
        partial.write_text(page, encoding="utf-8")


def facts(details: dict[str, Any], stages: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What was trained on what: headed lists of name and value; what no report tells is left out."""
    download, clean, tokenize, train = (stages[name] for name in ("download", "clean", "tokenize", "train"))
    model, wanted = details["params"]["model"], details["params"]["train"]
    words = {"bundled": "the bundled storyteller", "local": "own files", "huggingface": "the Hugging Face Hub"}
    source = download.get("source", details["params"]["download"]["source"])
    origin = download.get("origin")
    splits = [(side, tokenize.get(side, {})) for side in ("train", "val")]
    experts = (
        f"{model['n_expert']} a layer, {model['n_expert_per_token']} for each token"
        if model["n_expert"] and model["dense_baseline"] == "none"
        else "none (dense)"
    )
    parameters, optimizer = train.get("parameters", {}), wanted["optimizer"]
    lists: list[tuple[str, list[tuple[str, str | None]]]] = [
        (
            "Data",
            [
                ("source", words.get(source, source) + (f": {origin}" if origin and source != "bundled" else "")),
                ("licence", download.get("licence")),
                ("documents", _told(download, "documents")),
                ("kept by cleaning", _told(clean, "documents_out")),
                *((side, _tokens_of(part)) for side, part in splits),
            ],
        ),
        (
            "Model",
            [
                ("parameters", _told(parameters, "total")),
                ("active for a token", _told(parameters, "active")),
                ("layers × width", f"{model['n_layer']} × {model['n_embd']}"),
                ("heads", f"{model['n_head']}, {model['n_query_groups']} for keys and values"),
                ("experts", experts),
                ("vocabulary", _told(tokenize, "vocab_size")),
                ("context", f"{model['block_size']:,} tokens"),
            ],
        ),
        (
            "Training",
            [
                ("tokens", _told(train, "tokens")),
                ("epochs", f"{train['epochs']:.2f}" if "epochs" in train else None),
                ("steps", _told(train, "steps")),
                ("tokens a step", f"{wanted['global_batch_size'] * wanted['block_size']:,}"),
                ("optimizer", f"{optimizer['name']}, peak rate {optimizer['lr']:g}, {wanted['schedule']['name']}"),
                ("time", console.duration(train["seconds"]) if "seconds" in train else None),
                ("speed", f"{train['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in train else None),
                ("on", f"{train['devices']} × {train['device']}, {train['precision']}" if "device" in train else None),
            ],
        ),
    ]
    return [(heading, [(name, value) for name, value in rows if value is not None]) for heading, rows in lists]


def _told(report: dict[str, Any], key: str) -> str | None:
    return f"{report[key]:,}" if isinstance(report.get(key), int) else None


def _tokens_of(part: dict[str, Any]) -> str | None:
    if not part:
        return None
    counts = (f"{part['documents']:,} documents", f"{part['tokens']:,} tokens", console.size(part["bytes"]))
    return " · ".join(count.replace(" ", "\N{NO-BREAK SPACE}") for count in counts)


def baselines(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Bits per byte of the model and everything it is compared with, most first; `width` in percent of the most."""
    steps = [("this model", figures["val"]["bits_per_byte"], "model")]
    for name, value in figures.get("baselines", {}).items():
        shown = f"{name.rsplit('_', 1)[1]}-gram Kneser\N{EN DASH}Ney" if name.startswith("kneser") else None
        steps.append((shown or _BASELINES[name], value, "baseline"))
    if "generator" in figures:
        steps.append(("the generator's entropy", figures["generator"]["entropy_bits_per_byte"], "bound"))
    most = max(value for _, value, _ in steps)
    return [
        {"name": name, "value": value, "kind": kind, "width": 100 * value / most}
        for name, value, kind in sorted(steps, key=lambda step: -step[1])
    ]


def compared(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the comparison; `verdict` is better, worse, same, or '' where neither direction is good."""
    old, new = previous.flat(before), previous.flat(after)
    rows = []
    for key, name, less, digits in _COMPARED:
        if key not in old or key not in new:
            continue
        difference = new[key] - old[key]
        verdict = "" if less is None else "better" if (difference < 0) == less else "worse"
        if round(difference, digits) == 0:
            verdict = "same"
        shown = [f"{value:,.{digits}f}" for value in (old[key], new[key])]
        sign = f"{difference:+,.{digits}f}".replace("-", "\N{MINUS SIGN}") if verdict != "same" else "0"
        rows.append({"name": name, "before": shown[0], "after": shown[1], "difference": sign, "verdict": verdict})
    return rows


def _by_prompt(stories: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each prompt with the first story at every temperature, and the others to unfold."""
    prompts = []
    for prompt in dict.fromkeys(story["prompt"] for story in stories):
        mine = [story for story in stories if story["prompt"] == prompt]
        first = [next(s for s in mine if s["temperature"] == t) for t in dict.fromkeys(s["temperature"] for s in mine)]
        prompts.append({"prompt": prompt, "first": first, "more": [s for s in mine if not any(s is f for f in first)]})
    return prompts


def _marked(story: dict[str, Any]) -> Markup:
    """Prompt in bold, the longest overlap with the training text marked."""
    whole, cut = story["prompt"] + story["text"], len(story["prompt"])
    begin, end = story.get("overlap_span", [0, 0])
    marks = sorted({0, cut, begin, end, len(whole)})
    parts = []
    for left, right in pairwise(marks):
        part = Markup.escape(whole[left:right])
        if right <= cut:
            part = Markup("<b>{}</b>").format(part)
        if begin <= left < end:
            part = Markup("<mark>{}</mark>").format(part)
        parts.append(part)
    return Markup("").join(parts)


def _number(value: float, digits: int = 3) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if math.isfinite(value) else "–"
