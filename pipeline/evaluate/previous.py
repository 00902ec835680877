"""What an evaluation is compared with: the one that DVC recorded before this run.

    before = recorded(Path("reports/plots/evaluate/details.json"))      # its content, or None
    changes(before["figures"], after["figures"])

DVC removes a stage's outputs before it runs the stage, and writes dvc.lock after it. So while the stage runs, dvc.lock
still names the outputs of the run before: in the workspace the run before this one, in a queued experiment (which
starts from a commit) the commit's. That is also what `dvc metrics diff` and `dvc params diff` start from.
"""

import json
from pathlib import Path
from typing import Any


def recorded(path: Path) -> dict[str, Any] | None:
    """The JSON file that dvc.lock names, from DVC's cache; None if there is none (first run, no DVC, lost cache)."""
    if not Path("dvc.lock").is_file():
        return None
    import dvc.api  # slow to import, and needed only here
    from dvc.exceptions import DvcException

    try:
        found = json.loads(dvc.api.read(path.as_posix(), encoding="utf-8"))
    except (DvcException, OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "figures" in found else None


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"val": {"loss": 1}} as {"val.loss": 1}."""
    result: dict[str, Any] = {}
    for key, value in nested.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Every key whose value is another now; None stands for a key that is not there."""
    old, new = flat(before), flat(after)
    keys = [*new, *(key for key in old if key not in new)]
    return [
        {"name": key, "before": old.get(key), "after": new.get(key)} for key in keys if old.get(key) != new.get(key)
    ]
