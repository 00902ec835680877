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

# Modules that cannot change what a stage computes: they validate parameters (whose values DVC tracks themselves),
# speak to the user, or watch the run. Declared, every edit of a help text would train the model again.
DERIVED = Path("pipeline/derived.py")  # what the properties of the parameters compute
WATCHERS = ("pipeline.params", "pipeline.errors", "pipeline.console", "pipeline.stage", "pipeline.tracking")


def problems(root: Path = Path()) -> list[str]:
    """Every disagreement between dvc.yaml, the parameters and the code under `root`, in words."""
    declared = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    found = []
    readers: dict[str, set[Path]] = {}  # of a section: the files of the stages that declare it
    for name, stage in declared.items():
        files = imported(root / "stages" / f"{name}.py", root)
        wanted = {path.relative_to(root).as_posix() for path in files}
        given = {dep for dep in stage["deps"] if dep.endswith((".py", ".jinja"))}
        found += [f"dvc.yaml: {name} imports {path}; add it to deps" for path in sorted(wanted - given)]
        found += [f"dvc.yaml: {name} declares {path}, which it does not import" for path in sorted(given - wanted)]
        code = {path for path in files if path.suffix == ".py"}
        sections = {section for path in code for section in _sections_read(_parsed(path))}
        given_sections = set(stage.get("params", []))
        found += [f"dvc.yaml: {name} reads params.{s}; add it to params" for s in sorted(sections - given_sections)]
        found += [f"dvc.yaml: {name} declares params.{s}, never read" for s in sorted(given_sections - sections)]
        for section in given_sections:
            readers.setdefault(section, set()).update(code)
    modules = {path: _Reads(_parsed(path)) for files in readers.values() for path in files}
    dvc_yaml = (root / "dvc.yaml").read_text(encoding="utf-8")
    for path, model in sorted(_all_keys(Params), key=str):
        section = path.split(".", 1)[0]
        read = any(modules[file].reads(path, model.__name__) for file in readers.get(section, ()))
        if not read and f"${{{path}}}" not in dvc_yaml:
            found.append(f"params.yaml: {path} is read by no stage that declares {section}")
    return list(dict.fromkeys(found))


def imported(module: Path, root: Path) -> set[Path]:
    """The project's files that `module` is made of: itself and what it imports, also inside functions, transitively.

    Templates that stand beside a module are part of it, and so is DERIVED where it reads a property of the parameters.
    WATCHERS are left out.
    """
    derived = {node.name for node in _parsed(root / DERIVED).body if isinstance(node, ast.FunctionDef)}
    seen: set[Path] = set()
    todo = [module]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix == ".py":
            tree = _parsed(path)
            todo += [found for name in _imports(tree) for found in _files(name, root)]
            if any(isinstance(node, ast.Attribute) and node.attr in derived for node in ast.walk(tree)):
                todo.append(root / DERIVED)
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


class _Reads:
    """Which keys of the parameters a module reads: as an attribute of a name that holds their section.

    A name holds a section if it is called like it (`train`, `self._train`), is annotated with its class (`params:
    Clean`), or was given such a value (`chosen = train.optimizer`). getattr may ask for any string of the module.
    """

    def __init__(self, tree: ast.Module) -> None:
        nodes = list(ast.walk(tree))
        self._pairs = {(_last(node.value), node.attr) for node in nodes if isinstance(node, ast.Attribute)}
        self._strings = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        calls = [node for node in nodes if isinstance(node, ast.Call) and _last(node.func) == "getattr"]
        self._asked = {_last(call.args[0]) for call in calls}
        self._called = {a.asname: a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names if a.asname}
        self._annotated: list[tuple[str, set[str]]] = []
        self._assigned: list[tuple[str, str]] = []
        for node in nodes:
            if isinstance(node, ast.arg) and node.annotation:
                self._annotated.append((node.arg.lstrip("_"), self._classes(node.annotation)))
            elif isinstance(node, ast.AnnAssign):
                self._annotated.append((_last(node.target), self._classes(node.annotation)))
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    left, right = [target], [node.value]
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        left, right = target.elts, node.value.elts
                    self._assigned += [(_last(name), _last(value)) for name, value in zip(left, right, strict=False)]

    def reads(self, path: str, model: str) -> bool:
        """Whether the key at a path such as train.optimizer.lr, a field of the class `model`, is read."""
        *_, section, key = path.split(".")
        classes = {model, section.title()}  # Download is a union of classes
        holders = {section} | {name for name, annotation in self._annotated if annotation & classes}
        for name, value in self._assigned:
            holders |= {name} if value in holders else set()
        asked = bool(holders & self._asked) and key in self._strings
        return asked or any((holder, key) in self._pairs for holder in holders)

    def _classes(self, annotation: ast.expr) -> set[str]:
        names = {_last(node) for node in ast.walk(annotation)}
        return names | {self._called[name] for name in names if name in self._called}


def _last(node: ast.AST) -> str:
    """The last name of a.b.c, without a leading underscore; "" for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value  # an annotation in quotes
    return (node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")).lstrip("_")


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every dotted key of the parameters with the model that it is a field of."""
    for name, field in model.model_fields.items():
        sections = list(_models(field.annotation))
        for section in sections:
            yield from _all_keys(section, f"{prefix}{name}.")
        if not sections:
            yield f"{prefix}{name}", model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in getattr(annotation, "__args__", ()):
            yield from _models(part)
