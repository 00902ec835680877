"""dvc.yaml and params.yaml against the code: what a stage declares must be what it imports and reads.

`moe lint` prints what `problems()` finds; the tests hold that it finds nothing.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.params import Params

# Modules that cannot change what a stage writes: they validate parameters (whose values DVC tracks themselves),
# speak to the user, or watch the run. Declared, every edit of a help text would train the model again.
WATCHERS = ("pipeline.params", "pipeline.errors", "pipeline.console", "pipeline.stage", "pipeline.tracking")


def problems(root: Path = Path()) -> list[str]:
    """Every disagreement between dvc.yaml, the parameters and the code under `root`, in words."""
    declared = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    found = []
    read_keys: dict[str, set[str]] = {}
    for name, stage in declared.items():
        files = imported(root / "stages" / f"{name}.py", root)
        wanted = {path.relative_to(root).as_posix() for path in files}
        given = {dep for dep in stage["deps"] if dep.endswith((".py", ".jinja"))}
        found += [f"dvc.yaml: {name} imports {path}; add it to deps" for path in sorted(wanted - given)]
        found += [f"dvc.yaml: {name} declares {path}, which it does not import" for path in sorted(given - wanted)]
        trees = [_parsed(path) for path in files if path.suffix == ".py"]
        sections = {section for tree in trees for section in _sections_read(tree)}
        given_sections = set(stage.get("params", []))
        found += [f"dvc.yaml: {name} reads params.{s}; add it to params" for s in sorted(sections - given_sections)]
        found += [f"dvc.yaml: {name} declares params.{s}, never read" for s in sorted(given_sections - sections)]
        names = {name for tree in trees for name in _names_read(tree)}
        for section in given_sections:
            read_keys.setdefault(section, set()).update(names)
    elsewhere = _keys_of_properties(root / "pipeline" / "params.py")
    dvc_yaml = (root / "dvc.yaml").read_text(encoding="utf-8")
    for path in sorted(_all_keys(Params)):
        section, key = path.split(".", 1)[0], path.rsplit(".", 1)[-1]
        if key not in read_keys.get(section, set()) | elsewhere and f"${{{path}}}" not in dvc_yaml:
            found.append(f"params.yaml: {path} is read by no stage that declares {section}")
    return found


def imported(module: Path, root: Path) -> set[Path]:
    """The project's files that `module` is made of: itself and what it imports, also inside functions, transitively.

    Templates that stand beside a module are part of it. WATCHERS are left out.
    """
    seen: set[Path] = set()
    todo = [module]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix == ".py":
            todo += [found for name in _imports(_parsed(path)) for found in _files(name, root)]
            todo += [template for template in path.parent.glob("*.jinja") if template.name in path.read_text("utf-8")]
    return {path for path in seen if path.suffix != ".py" or _says_something(_parsed(path))}


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(name: str, root: Path) -> list[Path]:
    """The files behind a dotted name: the module and the packages that it lies in; none if it is not ours."""
    if name.split(".")[0] not in ("pipeline", "stages") or any(name == w or name.startswith(f"{w}.") for w in WATCHERS):
        return []
    parts = name.split(".")
    packages = [root.joinpath(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)]
    return [path for path in [*packages, root.joinpath(*parts).with_suffix(".py")] if path.is_file()]


def _says_something(tree: ast.Module) -> bool:
    """False for a file without a statement, such as an __init__.py with its docstring alone."""
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in tree.body)


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _sections_read(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in Params.model_fields:
            owner = node.value
            if (isinstance(owner, ast.Name) and owner.id == "params") or (
                isinstance(owner, ast.Attribute) and owner.attr == "params"
            ):
                yield node.attr


def _names_read(tree: ast.AST) -> Iterator[str]:
    """Attributes, and strings that may name one (getattr)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _keys_of_properties(path: Path) -> set[str]:
    """Keys that properties of the params models read on behalf of their users."""
    return {
        node.attr
        for function in ast.walk(_parsed(path))
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
    }


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        sections = list(_models(field.annotation))
        for section in sections:
            yield from _all_keys(section, f"{prefix}{name}.")
        if not sections:
            yield f"{prefix}{name}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in getattr(annotation, "__args__", ()):
            yield from _models(part)
