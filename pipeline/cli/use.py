"""Choose for good: `moe use download=local download.path=data/own/stories.txt`.

A preset is chosen in configs/config.yaml, values go into a preset of their own, configs/SECTION/own.yaml. Both are what
`dvc exp run` composes from, so that the choice holds for every later run until it is changed.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline import params
from pipeline.cli.compose import compose
from pipeline.errors import UserError
from pipeline.files import written_whole

OWN = "own"  # the preset that holds the values


def use(choices: Sequence[str], output: Path = Path("params.yaml"), configs: Path = Path("configs")) -> list[Path]:
    """Write the choices to configs/, then params.yaml; return the files of configs/ that were written.

    choices: SECTION=PRESET and SECTION.KEY=VALUE. Raises UserError, and changes nothing, where they do not fit.
    """
    presets: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}
    for choice in choices:
        key, sign, value = choice.partition("=")
        section, _, name = key.strip().partition(".")
        if not sign or section not in params.Params.model_fields:
            known = ", ".join(params.Params.model_fields)
            raise UserError(f"{choice!r}: allowed: SECTION=PRESET and SECTION.KEY=VALUE; the sections are {known}")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            presets[section] = _known(configs / section, value)
    before = {path: path.read_bytes() for path in configs.rglob("*.yaml")}
    wrote = [configs / "config.yaml"]
    try:
        for section in dict.fromkeys([*presets, *values]):
            preset = presets.get(section) or _chosen(configs, section)
            if section in values:
                wrote.append(_write_own(configs / section, preset, values[section]))
                preset = OWN
            _choose(configs, section, preset)
        with written_whole(output) as partial:
            compose(partial.with_suffix(".yaml"), configs)
            partial.with_suffix(".yaml").rename(partial)
            params.load(partial)
    except BaseException:
        for path in configs.rglob("*.yaml"):
            path.write_bytes(before[path]) if path in before else path.unlink()
        raise
    return wrote


def _known(folder: Path, preset: str) -> str:
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if preset not in names:
        near = difflib.get_close_matches(preset, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(names)}"
        raise UserError(f"{folder.name}={preset}: no such preset in {folder}; {hint}")
    return preset


def _chosen(configs: Path, section: str) -> str:
    chosen = yaml.safe_load((configs / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return next(str(entry[section]) for entry in chosen if section in entry)


def _choose(configs: Path, section: str, preset: str) -> None:
    config = configs / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(re.sub(rf"(?m)^(\s*- {section}: ).*$", rf"\g<1>{preset}", text), encoding="utf-8")


def _write_own(folder: Path, preset: str, values: dict[str, str]) -> Path:
    """Write the values over a preset; over those that stand in `own` already where that is the preset."""
    own = folder / f"{OWN}.yaml"
    content = yaml.safe_load(own.read_text(encoding="utf-8")) if preset == OWN else {"defaults": [preset, "_self_"]}
    for key, value in values.items():
        *parents, name = key.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = _value(value)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    own.write_text(f"# Written by `moe use`; chosen in {folder.parent.name}/config.yaml.\n{text}", encoding="utf-8")
    return own


def _value(text: str) -> Any:
    """The value that Hydra would read, or the text itself where its grammar has none: a name with brackets, say."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(f"x={text}")
    except HydraException:
        return text
    value = text if parsed.is_sweep_override() else parsed.value()
    return text if type(value) is int and str(value) != text else value  # a folder 007, or 2024_01
