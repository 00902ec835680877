"""Reading params.yaml, and what is wrong with it in words."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import UserError
from pipeline.params.rules import Params
from pipeline.params.secrets import redacted


def load(path: Path | str = "params.yaml") -> Params:
    """Read and validate the whole file; raise UserError with one line for each thing wrong."""
    return validate(read(path), str(path))


def read(path: Path | str) -> dict[str, Any]:
    """What a file of parameters says, not validated, read as DVC reads it: YAML 1.2, no key twice. Raises UserError."""
    try:
        raw = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not here; run from the project's folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (YAMLError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {str(error)[:500]}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no sections; allowed: {', '.join(Params.model_fields)}")
    return raw


def validate(raw: dict[str, Any], origin: str = "params.yaml") -> Params:
    """Validate parameters that were already read; `origin` names them in an error."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(problem), raw) for problem in error.errors(include_url=False)]
        raise UserError("\n".join([f"{origin}:", *(f"  {redacted(line)}" for line in lines)])) from None


def filled(text: str, raw: dict[str, Any]) -> str:
    """`${section.key}` in a path of dvc.yaml as DVC fills it in; "None" where the parameters have no such key."""

    def value(found: re.Match[str]) -> str:
        at: Any = raw
        for key in found[1].split("."):
            at = at.get(key) if isinstance(at, dict) else None
        return str(at)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def leaves(params: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of the parameters, sections opened up."""
    for name in type(params).model_fields:
        value = getattr(params, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _explain(problem: dict[str, Any], raw: dict[str, Any]) -> str:
    section = raw.get(str(problem["loc"][0])) if problem["loc"] else None
    # Of download and instruct: the kind of section.
    source = section.get("source") if isinstance(section, dict) else None
    location = [part for i, part in enumerate(problem["loc"]) if not (i == 1 and part == source)]
    if location and location[-1] in ("number", "word"):  # which of the two kinds that a value may be of
        location.pop()
    path = ".".join(str(part) for part in location)
    kind, value, context = problem["type"], problem.get("input"), problem.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known_names(location[:-1], source)
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*map(str, location[:-1]), near[0]])}?" if near else f"known: {', '.join(known)}"
        )
        return f"{path} = {_shown(value)}: no such parameter; {hint}"
    if kind == "missing":
        return f"{path}: missing; every parameter is in params.yaml (configs/ has the defaults)"
    if kind == "value_error":  # our own rules: they name the key within the section and what is allowed
        message = str(context["error"])
        name, _, rest = message.partition(": ")
        if rest and " " not in name:
            return f"{path}.{name}: {rest}" if path else message
        return f"{path} = {_shown(value)}: {message}"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(value), str(context["expected"]).replace("'", "").split(), n=1)
        hint = f"; did you mean {near[0].rstrip(',')}?" if near else ""
        return f"{path} = {_shown(value)}; allowed: {context['expected']}{hint}"
    if kind == "union_tag_invalid":
        return f"{path}.source = {context['tag']!r}; allowed: {context['expected_tags']}"
    shown = f" = {_shown(value)}" if not isinstance(value, dict) else ""
    return f"{path}{shown}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= 100 else f"{text[:99]}…"


def _source_of(kind: Any) -> str | None:
    field = getattr(kind, "model_fields", {}).get("source")
    return get_args(field.annotation)[0] if field else None


def _known_names(location: list[Any], source: str | None) -> list[str]:
    model: Any = Params
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if get_origin(annotation) is not None:  # one kind of section, or of none; a section with sources is of many
            kinds = [kind for kind in get_args(annotation) if isinstance(kind, type)]
            annotation = next((kind for kind in kinds if _source_of(kind) == source), kinds[0] if kinds else None)
        model = annotation
    return list(model.model_fields) if hasattr(model, "model_fields") else []
