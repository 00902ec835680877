"""A stage's W&B run: what a stage calls while it works. No fault of W&B ever reaches the stage."""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline import console
from pipeline.tracking import artifacts, server
from pipeline.tracking.server import WandbError

_LEAST_FREE = 2**20  # bytes on the disk of the run's files
_CONFIRMATION = 10.0  # seconds that the server has, after the run's end, to say that it is whole


@contextmanager
def stage_run(stage: str, config: dict[str, Any], *, resume_key: str | None = None) -> Iterator["Run"]:
    """Watch the block as the stage's run: job type = stage, group = DVC experiment or commit, config = `config`.

    resume_key: what says that it is the same training (its fingerprint); with the same key the run is continued.
    With W&B not set up this says so in one line and imports nothing. Only rank 0 of several processes is watched.
    """
    run = Run(stage, config)
    if os.environ.get("RANK", "0") == "0":
        run._begin(resume_key)
    try:
        yield run
    except BaseException:
        run._end(exit_code=1)
        raise
    run._end(exit_code=0)


class Run:
    """What a stage tells W&B. Every method returns normally whatever happens: a fault is reported once, in words."""

    def __init__(self, stage: str, config: dict[str, Any]) -> None:
        self.stage = stage
        self._config = config
        self._live: Any = None  # the SDK's run
        self._online = False
        self._uses: dict[str, str] = {}
        self._rows = 0
        self._reported = False

    @property
    def url(self) -> str | None:
        """Where the run can be watched; None offline."""
        return self._live.url if self._live is not None and self._online else None

    def log(self, metrics: dict[str, float], *, tokens: int) -> None:
        """Add a point to each curve. `tokens`: trained on so far, the x axis."""
        self._log(metrics | {"tokens": tokens})

    def log_table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Show a table, e.g. of generated samples."""
        if self._live is not None:
            import wandb

            with self._unharmed():
                self._log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def summarize(self, figures: dict[str, float]) -> None:
        """Show the stage's few figures, those that people compare, as the run's summary."""
        if self._live is not None:
            with self._unharmed():
                self._live.summary.update(figures)

    def log_heatmap(self, name: str, values: Sequence[Sequence[float]], *, tokens: int, x: str, y: str) -> None:
        """Show a matrix as a heat map, e.g. the load of each expert (x) in each layer (y)."""
        if self._live is not None:
            import numpy as np
            import wandb
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            with self._unharmed():
                figure = Figure(figsize=(6, 4), layout="constrained")
                axes = figure.add_subplot(xlabel=x, ylabel=y, title=f"{name} at {tokens:,} tokens")
                figure.colorbar(axes.imshow(values, aspect="auto", vmin=0))
                canvas = FigureCanvasAgg(figure)
                canvas.draw()
                self._log({name: wandb.Image(np.asarray(canvas.buffer_rgba())), "tokens": tokens})

    def use(self, name: str) -> None:
        """Record that the run reads the artifact `name` as it lies on disk.

        Its hash goes to the run's config at once; where W&B does not (yet) have that version, `moe mirror` draws the
        line of descent later from there.
        """
        if self._live is None:
            return
        with self._unharmed():
            try:
                content = artifacts.content(artifacts.named(name))
            except FileNotFoundError:
                return
            self._uses[name] = content.hash
            self._live.config.update({"lineage": dict(self._uses)}, allow_val_change=True)
            found = artifacts.find(self._api, content) if self._online else None
            if found is not None:
                self._live.use_artifact(found)

    def mirror(self) -> None:
        """Log this stage's outputs as artifacts, as they lie on disk; returns when the server has confirmed them."""
        if self._live is None:
            return
        with self._unharmed():
            if self._online:
                server.entity()  # a server that has died is found out here within seconds, by the SDK in minutes
            keep = None if self._online else Path(self._live.dir).parent / "artifacts"
            for artifact in artifacts.of_stage(self.stage):
                if (content := artifacts.content(artifact)).files:  # the adapter is none where all weights train
                    artifacts.log(self._live, content, self._config, keep)
            if self.stage == "evaluate" and self._online:
                artifacts.rank(self._api)

    def _begin(self, resume_key: str | None) -> None:
        mode, why = server.mode()
        if mode == "off":
            console.say(f"W&B: off ({why}); nothing is contacted")
            return
        if mode == "online":
            with self._unharmed():
                self._live = open_run("online", self.stage, self._config, resume_key)
                self._online = True
        if self._live is None:
            with self._unharmed():
                self._live = open_run("offline", self.stage, self._config, resume_key)
        if self._live is None:
            return
        with self._unharmed():
            self._live.define_metric("tokens", hidden=True)
            self._live.define_metric("*", step_metric="tokens")
        console.say(f"W&B: {self.url}" if self._online else f"W&B: offline, kept in {self._place}")
        for artifact in artifacts.read_by(self.stage):
            self.use(artifact.name)

    def _log(self, row: dict[str, Any]) -> None:
        if self._live is not None:
            with self._unharmed():
                self._live.log(row)
                self._rows += 1

    def _end(self, exit_code: int) -> None:
        if self._live is None:
            return
        with self._unharmed():
            self._live.finish(exit_code=exit_code)
            _refuse_full_disk()
            if self._online:
                self._confirm()

    def _confirm(self) -> None:
        """Raise WandbError unless the server says that the run has ended: the SDK keeps what went wrong to itself."""
        query = (
            "query Run($entity: String!, $project: String!, $name: String!) "
            "{ project(entityName: $entity, name: $project) { run(name: $name) { state historyLineCount } } }"
        )
        until = time.monotonic() + _CONFIRMATION
        where = {"entity": self._live.entity, "project": self._live.project, "name": self._live.id}
        while True:
            said = ((server.ask(query, **where) or {}).get("project") or {}).get("run") or {}
            if said.get("state") not in (None, "running"):
                return
            if time.monotonic() > until:
                raise WandbError("the server does not confirm the end of the run")
            time.sleep(0.5)

    @cached_property
    def _api(self) -> Any:
        return server.api()

    @property
    def _place(self) -> str:
        return os.path.relpath(Path(self._live.dir).parent)

    @contextmanager
    def _unharmed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the SDK raises: a watcher stops nobody
            if self._reported:
                return
            self._reported = True
            advice = "the stage goes on; `moe mirror` uploads its outputs later"
            if self._live is not None:
                advice += f", `wandb sync {'--include-online ' if self._online else ''}{self._place}` its curves"
            console.warn(f"W&B: {WandbError(error)}; {advice}")


def _refuse_full_disk() -> None:
    """Raise WandbError where the SDK has no room for its files: it loses rows then, and says nothing of it."""
    folder = os.environ.get("WANDB_DIR") or "."
    if os.path.isdir(folder) and shutil.disk_usage(folder).free < _LEAST_FREE:
        raise WandbError(f"the disk is full ({os.path.abspath(folder)}), so curves are missing or cut short")


def open_run(mode: Literal["online", "offline"], stage: str, config: dict[str, Any], resume_key: str | None) -> Any:
    """The SDK's run of a stage. Raises WandbError or what the SDK raises, within WANDB_INIT_TIMEOUT (default 20 s)."""
    _refuse_full_disk()
    os.environ.setdefault("WANDB_SILENT", "true")  # the SDK's own lines; what matters is said by us, once
    logging.raiseExceptions = False  # where its log cannot be written, else a traceback for each line of it
    import wandb

    settings = wandb.Settings(
        silent=os.environ["WANDB_SILENT"].lower() in ("true", "1"),
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT") or 20),
        finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT") or 30),
        finish_timeout_raises=True,
        x_graphql_timeout_seconds=10,
        x_graphql_retry_max=2,
        x_graphql_retry_wait_max_seconds=3,
        x_file_stream_retry_max=5,
        x_file_stream_timeout_seconds=20,
    )
    where: dict[str, Any] = {"mode": mode, "project": os.environ["WANDB_PROJECT"], "dir": os.environ.get("WANDB_DIR")}
    if mode == "online":
        where["entity"] = server.entity()
    if resume_key is not None:
        where["id"] = hashlib.sha256(f"{stage} {resume_key}".encode()).hexdigest()[:16]
        where["resume"] = "allow" if mode == "online" else None  # offline the SDK only warns about it
    group = artifacts.group()
    return wandb.init(
        job_type=stage,
        group=group,
        name=f"{stage} {group}",
        config=server.redacted(config),
        settings=settings,
        reinit="finish_previous",
        **where,
    )
