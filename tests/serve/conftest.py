"""Servers on a free port of this machine, in a thread; the model is small and the rest is real."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from pipeline import params
from pipeline.generate.batch import Batch
from pipeline.generate.generation import Generator
from pipeline.serve.engine import Engine
from pipeline.serve.listen import Listen
from pipeline.serve.server import application
from tests.generate.making import made

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Serving:
    address: str
    generator: Generator
    engine: Engine


Serve = Callable[..., Serving]
Gate = threading.Semaphore


def until(true: Any) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < 30
        time.sleep(0.005)


@pytest.fixture(scope="session")
def base(work: Path, parameters: params.Params, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return made(parameters, tmp_path_factory.mktemp("serve") / "litgpt", work / "data/tokenizer")


@pytest.fixture(scope="session")
def talking(base: Generator, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = shutil.copytree(base.tokenizer_folder, tmp_path_factory.mktemp("talking") / "litgpt")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return Generator.open(folder)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server for a generator; all are ended with the test."""
    ends: list[Callable[[], None]] = []

    def start(generator: Generator, **settings: object) -> Serving:
        listen = Listen(port=0, **settings)  # type: ignore[arg-type]
        engine = Engine(generator, listen.batch, listen.queue)
        app = application(generator, "tiny", engine, listen)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.005)

        def end() -> None:
            server.should_exit = server.force_exit = True
            thread.join()
            engine.close()

        ends.append(end)
        return Serving(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", generator, engine)

    yield start
    for end in ends:
        end()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The model writes a token only where the test lets it."""
    permits = Gate(0)
    step = Batch.step

    def gated(batch: Batch) -> None:
        permits.acquire()
        step(batch)

    monkeypatch.setattr(Batch, "step", gated)
    yield permits
    permits.release(10_000)
