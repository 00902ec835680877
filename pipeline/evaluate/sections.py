"""The sections of report.html, from top to bottom: SECTIONS.

A section is a function here and the template of the same name in templates/. The function picks what the template
shows out of the evaluation; None leaves the section out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline import console
from pipeline.evaluate import previous
from pipeline.evaluate.reports import at

_BASELINES = {
    "unigram": "unigrams",
    "gzip": "gzip -9",
    "xz": "xz -9e",
    "zstd": "zstd, long window",
    "zstd_with_training_text": "zstd that has the training text",
}


@dataclass(frozen=True)
class Evaluation:
    """What a report is made of."""

    details: dict[str, Any]  # from evaluate.evaluate; details["figures"] are the numbers of reports/evaluate.json
    stages: dict[str, dict[str, Any]]  # what the stages before reported, from reports.read
    before: dict[str, Any] | None  # the details of the run before, from previous.recorded
    run: dict[str, str | None]  # model, experiment and commit, as far as known

    @property
    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = self.details["figures"]
        return figures


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """The headline numbers, and which run they are of."""
    optional = {name: evaluation.figures.get(name) for name in ("train_sample", "generator", "not_comparable")}
    run = evaluation.run | {"trained": at(evaluation.stages, "train", "finished")}
    return {"run": {name: value for name, value in run.items() if value}, "val": evaluation.figures["val"], **optional}


def training(evaluation: Evaluation) -> dict[str, Any]:
    """Headed lists of name and value: the data, the model, how it was trained; what no report has is left out."""
    stages = evaluation.stages
    model, wanted = evaluation.details["params"]["model"], evaluation.details["params"]["train"]
    optimizer = wanted["optimizer"]
    experts = "none (dense)"
    if model["n_expert"] and model["dense_baseline"] == "none":
        experts = f"{model['n_expert']} per layer, {model['n_expert_per_token']} for each token"
    facts = {
        "Data": {
            "source": _shown("{}", at(stages, "download", "description")),
            "licence": _shown("{}", at(stages, "download", "licence")),
            "documents": _shown("{:,}", at(stages, "download", "documents")),
            "kept by cleaning": _shown("{:,}", at(stages, "clean", "documents_out")),
            "train": _tokens_of(at(stages, "tokenize", "train")),
            "val": _tokens_of(at(stages, "tokenize", "val")),
        },
        "Model": {
            "parameters": _shown("{:,}", at(stages, "train", "parameters", "total")),
            "active for a token": _shown("{:,}", at(stages, "train", "parameters", "active")),
            "layers × width": f"{model['n_layer']} × {model['n_embd']}",
            "heads": f"{model['n_head']}, {model['n_query_groups']} for keys and values",
            "experts": experts,
            "vocabulary": _shown("{:,}", at(stages, "tokenize", "vocab_size")),
            "context": f"{model['block_size']:,} tokens",
        },
        "Training": {
            "tokens": _shown("{:,}", at(stages, "train", "tokens")),
            "epochs": _shown("{:.2f}", at(stages, "train", "epochs")),
            "steps": _shown("{:,}", at(stages, "train", "steps")),
            "tokens per step": f"{wanted['global_batch_size'] * wanted['block_size']:,}",
            "optimizer": f"{optimizer['name']}, peak rate {optimizer['lr']:g}, {wanted['schedule']['name']}",
            "time": _shown("{}", at(stages, "train", "seconds"), convert=console.duration),
            "speed": _shown("{:,.0f} tokens/s", at(stages, "train", "tokens_per_second")),
            "on": _shown("{} × {}, {}", *(at(stages, "train", key) for key in ("devices", "device", "precision"))),
        },
    }
    return {"facts": {head: {k: v for k, v in rows.items() if v is not None} for head, rows in facts.items()}}


def _shown(form: str, *values: Any, convert: Callable[[Any], Any] = lambda value: value) -> str | None:
    """The values in words; None where a report lacks one or has something else in its place."""
    try:
        return form.format(*map(convert, values)) if None not in values else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _tokens_of(split: Any) -> str | None:
    try:
        counts = [f"{split['documents']:,} documents", f"{split['tokens']:,} tokens", console.size(split["bytes"])]
    except (KeyError, TypeError, ValueError):
        return None
    return " · ".join(count.replace(" ", "\N{NO-BREAK SPACE}") for count in counts)


def baselines(evaluation: Evaluation) -> dict[str, Any] | None:
    """Bits per byte of the model and everything it is compared with, most first; `width` in percent of the most."""
    figures = evaluation.figures
    if "bits_per_byte" not in figures["val"]:
        return None
    rows = [("this model", figures["val"]["bits_per_byte"], "model")]
    for name, value in figures.get("baselines", {}).items():
        order = name.removeprefix("kneser_ney_")
        rows.append((_BASELINES.get(name, f"{order}-gram Kneser\N{EN DASH}Ney"), value, "baseline"))
    if "generator" in figures:
        rows.append(("the generator's entropy", figures["generator"]["entropy_bits_per_byte"], "bound"))
    most = max(value for _, value, _ in rows)
    return {
        "rows": [
            {"name": name, "value": value, "kind": kind, "width": 100 * value / most}
            for name, value, kind in sorted(rows, key=lambda row: -row[1])
        ],
        "counted_bytes": evaluation.details["params"]["evaluate"]["baseline_bytes"] if "baselines" in figures else None,
        "generator": "generator" in figures,
    }


def samples(evaluation: Evaluation) -> dict[str, Any]:
    """Each prompt with the first story at every temperature, and the others to unfold."""
    described = evaluation.details["samples"]
    prompts = []
    for prompt in dict.fromkeys(story["prompt"] for story in described["stories"]):
        mine = [story for story in described["stories"] if story["prompt"] == prompt]
        first = [next(s for s in mine if s["temperature"] == t) for t in dict.fromkeys(s["temperature"] for s in mine)]
        prompts.append({"prompt": prompt, "first": first, "more": [s for s in mine if not any(s is f for f in first)]})
    return {
        "prompts": prompts,
        "by_temperature": described["by_temperature"],
        "held_out_overlap": described.get("held_out_overlap"),
        "searched_bytes": evaluation.details["params"]["evaluate"]["memorisation_bytes"],
    }


def tokens(evaluation: Evaluation) -> dict[str, Any] | None:
    """Some stories token by token: probability, alternatives, experts; the colours that the page's style needs."""
    stories = evaluation.details["samples"].get("inspected")
    if not stories:
        return None
    n_expert = stories[0]["n_expert"]
    hues = [360 * e / n_expert if n_expert <= 12 else 137.508 * e % 360 for e in range(n_expert)]  # else a golden angle
    return {
        "stories": [{"temperature": s["temperature"], "tokens": [_token(t, s) for t in s["tokens"]]} for s in stories],
        "layers": stories[0]["layers"],
        "hues": [round(hue) for hue in hues],
    }


def _token(token: dict[str, Any], story: dict[str, Any]) -> dict[str, str]:
    """Text, classes (its surprise in bits, up to 9; in each layer the two experts that weigh most) and a note."""
    classes, notes = [], []
    if (probability := token["probability"]) is not None:
        classes.append(f"s{min(9, round(-math.log2(max(probability, 1e-9))))}")
        others = ", ".join(f"{_visible(a['text'])} {100 * a['probability']:.1f} %" for a in token["alternatives"])
        notes.append(f"{_visible(token['text'])} {100 * probability:.1f} %; likeliest: {others}")
    for i, (layer, experts) in enumerate(zip(story["layers"], token["experts"], strict=True)):
        heaviest = sorted(experts, key=lambda visit: -visit["weight"])
        classes += [f"l{i}{side}{visit['expert']}" for side, visit in zip("ab", heaviest, strict=False)]
        notes.append(f"layer {layer}: " + ", ".join(f"expert {v['expert']} ({v['weight']:.2f})" for v in heaviest))
    return {"text": token["text"], "classes": " ".join(classes), "note": "\n".join(notes)}


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace(" ", "␣")


def experts(evaluation: Evaluation) -> dict[str, Any] | None:
    """Load, agreement and top tokens of each MoE layer."""
    routing = evaluation.details["routing"]
    if not routing:
        return None
    layers = [
        {"number": number, "information": information, "experts": list(zip(load, top, strict=True))}
        for number, information, load, top in zip(
            routing["layers"], routing["token_information"], routing["load"], routing["top_tokens"], strict=True
        )
    ]
    return {"routing": evaluation.figures["routing"], "layers": layers}


def breakdown(evaluation: Evaluation) -> dict[str, Any]:
    """The loss by context, length and source; calibration."""
    return {"by_source": evaluation.details["by_source"], "bytes": "bits_per_byte" in evaluation.figures["val"]}


def lm_eval(evaluation: Evaluation) -> dict[str, Any] | None:
    """Results of lm-eval's tasks, if there are any."""
    return {"tasks": evaluation.figures["lm_eval"]} if "lm_eval" in evaluation.figures else None


def comparison(evaluation: Evaluation) -> dict[str, Any]:
    """The figures and parameters that differ from the run before."""
    before, after = evaluation.before, evaluation.details
    if before is None:
        return {"before": False}
    return {
        "before": True,
        "rows": previous.compared(before, after),
        "different": previous.different(before, after),
        "changed": previous.changes(before["params"], after["params"]),
    }


def method(evaluation: Evaluation) -> dict[str, Any]:
    """How the numbers came about."""
    parameters = evaluation.details["params"]
    return {"stride": parameters["evaluate"]["stride"], "block_size": parameters["train"]["block_size"]}


SECTIONS: tuple[Callable[[Evaluation], dict[str, Any] | None], ...] = (
    summary,
    training,
    baselines,
    samples,
    tokens,
    experts,
    breakdown,
    lm_eval,
    comparison,
    method,
)
