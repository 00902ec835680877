"""The page of all parameters, from their descriptions: `python docs/parameters.py > docs/parameters.md`.

What is allowed comes from the Pydantic models, the defaults from configs/, the presets' words from their first line.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.params import Params

CONFIGS = Path(__file__).parents[1] / "configs"
HEAD = """# All parameters

What `params.yaml` holds, section by section. `uv run dvc exp run -S train.optimizer.lr=1e-3` tries a value,
`-S train=gpu24gb` a preset of values; `uv run moe use …` chooses it for every later run. A name or a value that is not
allowed is refused in the first second, in words.
"""


def page() -> str:
    schema = Params.model_json_schema()
    chosen = {
        k: v for entry in _yaml(CONFIGS / "config.yaml")["defaults"] if entry != "_self_" for k, v in entry.items()
    }
    parts = [HEAD]
    for section, described in schema["properties"].items():
        default = chosen[section]
        parts += [f"## {section}\n", "| preset | what |\n| --- | --- |\n" + "".join(_presets(section, default))]
        for title, reference, preset in _kinds(section, described, default):
            values = _composed(section, preset)
            rows = "".join(_rows(schema["$defs"][reference.rpartition("/")[2]], values, schema["$defs"]))
            head = f"| parameter | allowed | {'default' if preset == default else f'in {preset}'} | what |"
            parts.append(f"{title}{head}\n| --- | --- | --- | --- |\n{rows}")
    return "\n".join(parts)


def _presets(section: str, default: str) -> Iterator[str]:
    for path in sorted((CONFIGS / section).glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = []
        for line in lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), None)]:
            comment.append(line.removeprefix("#").strip())
        words = _cell(" ".join(comment)) or ("what a plain `dvc repro` takes" if path.stem == default else "")
        yield f"| `{section}={path.stem}`{' (default)' if path.stem == default else ''} | {words} |\n"


def _kinds(section: str, described: dict[str, Any], default: str) -> Iterator[tuple[str, str, str]]:
    """Title, schema and preset of each table: a section has one, one with sources has one for each source."""
    if "$ref" in described:
        yield "", described["$ref"], default
        return
    for source, reference in described["discriminator"]["mapping"].items():
        yield f"### {section}.source: {source}\n\n", reference, source


def _rows(kind: dict[str, Any], values: Any, definitions: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, field in kind["properties"].items():
        options = field.get("anyOf", field.get("oneOf", [field]))
        inner = next((option["$ref"].rpartition("/")[2] for option in options if "$ref" in option), None)
        value = values.get(name) if isinstance(values, dict) else None
        shown = f"`{yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix('...').strip()}`"
        if inner and isinstance(value, dict):
            yield from _rows(definitions[inner], value, definitions, f"{prefix}{name}.")
            continue
        allowed = " or ".join(dict.fromkeys(_allowed(option, definitions) for option in options))
        known = isinstance(values, dict) and name in values
        cells = (f"`{prefix}{name}`", allowed, shown if known else "", field.get("description", ""))
        yield f"| {' | '.join(map(_cell, cells))} |\n"
        if inner:  # null by default: what it may hold
            yield from _rows(definitions[inner], None, definitions, f"{prefix}{name}.")


def _allowed(option: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in option:
        return "a section"
    if "const" in option or "enum" in option:
        return ", ".join(f"`{value}`" for value in option.get("enum", [option.get("const")]))
    kind = option.get("type", "any")
    if kind == "array":
        items = option.get("items", option.get("prefixItems", [{}])[0] if option.get("prefixItems") else {})
        return f"a list of {_allowed(items, definitions)}"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true`, `false`",
        "null": "`null`",
    }
    bounds = []
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        if key in option and abs(option[key]) < 1e6:  # beyond that a bound only keeps nonsense out
            bounds.append(f"{sign} {option[key]:g}")
    return " ".join([words.get(kind, kind), ", ".join(bounds)]).strip()


def _composed(section: str, preset: str) -> dict[str, Any]:
    """A preset with those that it is built on."""
    values = _yaml(CONFIGS / section / f"{preset}.yaml")
    found: dict[str, Any] = {}
    for base in values.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            found |= _composed(section, base)
    return found | values


def _yaml(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
