"""Run one stage and record what it really reads: `python -m tests.recorder STAGE OUT.json`, in a project's folder.

Written are the imports between the project's own modules, the files and folders that were opened to read, and the
parameters (class.field) that were asked for after validation. Nothing here parses code, so nothing can fool it.
"""

import builtins
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path.cwd()
imports: set[tuple[str, str]] = set()
opened: set[str] = set()
parameters: set[str] = set()


def record_imports() -> None:
    real = builtins.__import__

    def recording(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        module = real(name, globals, locals, fromlist, level)
        importer = (globals or {}).get("__name__", "")
        if importer.partition(".")[0] in ("pipeline", "stages", "__main__") and name.partition(".")[0] == "pipeline":
            modules = [name, *(f"{name}.{item}" for item in fromlist or ())]
            imports.update((importer, found) for found in modules if found in sys.modules)
        return module

    builtins.__import__ = recording


def record_files() -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.listdir", "os.scandir") or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        path = Path(os.path.normpath(ROOT / arguments[0]))
        if path.is_relative_to(ROOT):
            opened.add(path.relative_to(ROOT).as_posix())

    sys.addaudithook(hook)


def record_parameters() -> None:
    from pipeline import params, stage
    from pipeline.params.section import Section

    real = params.load

    def reading(self: Any, name: str) -> Any:
        if name in type(self).model_fields:
            parameters.add(f"{type(self).__name__}.{name}")
        return super(Section, self).__getattribute__(name)

    def load(path: Path) -> params.Params:
        found = real(path)
        Section.__getattribute__ = reading  # type: ignore[method-assign]  # from here on: validation is over
        return found

    params.load = load  # type: ignore[assignment]
    stage.Inputs._now = lambda self: {}  # type: ignore[method-assign]  # it looks at all that is declared


if __name__ == "__main__":
    name, out = sys.argv[1:]
    sys.argv = [name]
    record_parameters()
    record_imports()
    record_files()
    try:
        runpy.run_module(f"stages.{name}", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    found = {"imports": sorted(imports), "opened": sorted(opened), "parameters": sorted(parameters)}
    Path(out).write_text(json.dumps(found, indent=1))
