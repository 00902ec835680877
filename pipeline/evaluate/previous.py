"""The evaluation that DVC recorded before this run, and what is different now.

    before = recorded(Path("reports/plots/evaluate/details.json"))      # its content, or None
    compared(before, details)                                           # a row for each figure that both have

DVC removes a stage's outputs before it runs the stage, and writes dvc.lock after it. So while the stage runs, dvc.lock
still names the outputs of the run before: in the workspace the run before this one, in a queued experiment (which
starts from a commit) the commit's. That is also what `dvc metrics diff` and `dvc params diff` start from.
"""

import json
from pathlib import Path
from typing import Any

from dvc.utils.flatten import flatten

from pipeline import console

# Figure, its name, whether less is better (None: neither), digits, and what must be the same in both runs: "text" (the
# validation text), "tokens" (the text and the tokenizer) or nothing.
_COMPARED: list[tuple[str, str, bool | None, int, str | None]] = [
    ("val.bits_per_byte", "bits per byte", True, 4, "text"),
    ("val.loss", "loss, nats per token", True, 4, "tokens"),
    ("val.perplexity", "perplexity", True, 3, "tokens"),
    ("val.accuracy", "next token right", False, 4, "tokens"),
    ("val.calibration_error", "calibration error", True, 4, "tokens"),
    ("train_sample.loss", "loss on a sample of train", None, 4, "tokens"),
    ("generator.gap_bits_per_byte", "above the generator's entropy, bits per byte", True, 4, "text"),
    ("routing.min_load_entropy", "least even layer (1: even)", False, 3, None),
    ("routing.dead_experts", "dead experts", True, 0, None),
    ("samples.ends", "samples that end properly", False, 3, None),
    ("samples.distinct_2", "different token pairs", None, 3, "tokens"),
    ("samples.repetition", "repetition", True, 3, "tokens"),
    ("samples.overlap_mean", "longest overlap with train, tokens", None, 1, "tokens"),
]


def recorded(path: Path) -> dict[str, Any] | None:
    """The content of the JSON file that dvc.lock names; None, with a warning, where this machine does not have it.

    Only DVC's cache here is read, no remote. The comparison is optional, so nothing that DVC raises stops the stage.
    """
    if not Path("dvc.lock").is_file():
        return None
    from dvc.repo import Repo  # slow to import, and needed only here

    try:
        with Repo() as repo:
            (out,) = repo.find_outs_by_path(str(path.parent))
            if not out.hash_info:
                return None  # DVC has recorded no evaluation yet
            tree = out.get_obj()
            if tree is None:
                raise FileNotFoundError("it is not in DVC's cache; `dvc fetch evaluate` brings it from a remote")
            _, entry = tree.get((path.name,))
            found = json.loads(Path(out.cache.oid_to_path(entry.value)).read_text(encoding="utf-8"))
    except Exception as error:
        console.warn(f"no comparison with the run before ({str(error).splitlines()[0]})")
        return None
    return found if isinstance(found, dict) and "figures" in found else None


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Every key whose value is another now; None stands for a key that is not there."""
    old, new = flatten(before), flatten(after)
    return [
        {"name": key, "before": old.get(key), "after": new.get(key)}
        for key in {**new, **old}
        if old.get(key) != new.get(key)
    ]


def compared(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of figures that both have. `verdict`: better, worse, same, '' (neither is good) or not comparable."""
    old, new = flatten(before["figures"]), flatten(after["figures"])
    rows = []
    for key, name, less, digits, needs in _COMPARED:
        if key not in old or key not in new:
            continue
        difference = new[key] - old[key]
        sign = f"{difference:+,.{digits}f}".replace("-", "\N{MINUS SIGN}")
        verdict = "" if less is None else "better" if (difference < 0) == less else "worse"
        if needs is not None and needs in different(before, after):
            sign, verdict = "", "not comparable"
        elif round(difference, digits) == 0:
            sign, verdict = "0", "same"
        shown = [f"{value:,.{digits}f}" for value in (old[key], new[key])]
        rows.append({"name": name, "before": shown[0], "after": shown[1], "difference": sign, "verdict": verdict})
    return rows


def different(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Which of the validation text ("text") and its tokens ("tokens") are not those of the run before."""
    return [part for part, digest in after["val_set"].items() if before.get("val_set", {}).get(part) != digest]
