"""The server: a page, and an API in the shape of OpenAI's, for one model.

    serve(generator, "models/litgpt", Listen(port=8000))           # until Ctrl-C
    application(generator, "models/litgpt", engine, Listen())      # as an ASGI application

What is asked and answered is written nowhere.
"""

import asyncio
import importlib.resources
import json
import os
import socket
import time
import uuid
import webbrowser
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from pipeline import console
from pipeline.errors import UserError
from pipeline.generate.batch import Row
from pipeline.generate.generation import Generator
from pipeline.generate.inspection import inspect
from pipeline.model.layout import moe_layers
from pipeline.serve import guard, openai
from pipeline.serve.engine import BusyError, Engine, Job, ModelError
from pipeline.serve.listen import Listen
from pipeline.serve.openai import ChatAsked, Chats, CompletionAsked, Completions, InspectionAsked
from pipeline.tokens.chat_template import ChatTemplate, has_one

Shape = type[Completions] | type[Chats]
T = TypeVar("T")
_FAILED = "the model failed; see the server's own messages"


def serve(generator: Generator, name: str, listen: Listen) -> None:
    """Answer until Ctrl-C. Raises UserError for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        listening = socket.create_server((listen.host, listen.port), family=family)
    except OSError as error:
        raise UserError(
            f"--host {listen.host} --port {listen.port}: {error.strerror}; take another, --port 0 finds a free one"
        ) from None
    if "OMP_NUM_THREADS" not in os.environ and (threads := torch.get_num_threads()) > 1:
        torch.set_num_threads(threads - 1)  # one core answers; with all, torch's threads wait for it: a third as fast
    engine = Engine(generator, listen.batch, listen.queue)
    app = application(generator, name, engine, listen)
    # No log of requests; what fails inside is reported without what was asked.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=1
    )
    shown = f"[{listen.host}]" if ":" in listen.host else listen.host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    console.say(f"serve: {name} at {address}, for OpenAI's clients at {address}/v1; Ctrl-C ends it")
    if listen.open_page:
        webbrowser.open(address)  # which waits: the socket listens already
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn gives the signal back when it has ended; where SIGINT is ignored it returns
        pass
    finally:
        engine.close()
    console.say("serve: ended")


def application(generator: Generator, name: str, engine: Engine, listen: Listen) -> Starlette:
    """`name`: what the model is called in the API."""
    service = _Service(generator, name, engine)
    get, post = partial(Route, methods=["GET"]), partial(Route, methods=["POST"])
    return Starlette(
        routes=[
            get("/", service.page),
            get("/health", service.health),
            get("/v1/models", service.models),
            get("/v1/models/{name:path}", service.one_model),
            post("/v1/completions", service.completions),
            post("/v1/chat/completions", service.chat_completions),
            post("/v1/inspect", service.inspection),
        ],
        middleware=[Middleware(guard.Guard, hosts=listen.hosts, token=listen.token)],
        exception_handlers={
            UserError: _wrong,
            BusyError: lambda _request, _error: guard.refusal(
                429, "too many requests wait; try again in a moment", code="rate_limit_exceeded"
            ),
            HTTPException: lambda _request, error: guard.refusal(error.status_code, error.detail),
            ClientDisconnect: lambda _request, _error: Response(status_code=499),
            ModelError: lambda _request, _error: guard.refusal(500, _FAILED),
            Exception: lambda _request, _error: guard.refusal(500, "this server has a fault; see its own messages"),
        },
    )


def _wrong(_request: Request, error: Exception) -> JSONResponse:
    words = str(error)
    code = "context_length_exceeded" if "the model's context is" in words else None
    return guard.refusal(400, words, words.partition(" = ")[0] if " = " in words else None, code)


class _Events(StreamingResponse):
    """Server-sent events; their source ends with the connection, whoever ends that."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


class _Service:
    def __init__(self, generator: Generator, name: str, engine: Engine) -> None:
        self._generator, self._name, self._engine = generator, name, engine
        self._template = ChatTemplate(folder) if has_one(folder := generator.tokenizer_folder) else None
        self._page = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        self._policy = guard.page_policy(self._page)
        self._begun = int(time.time())

    async def page(self, _request: Request) -> Response:
        return HTMLResponse(self._page, headers={"content-security-policy": self._policy})

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def one_model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self._name:
            return self._no_such_model(name)
        return JSONResponse(self._described())

    async def completions(self, request: Request) -> Response:
        asked = openai.read(CompletionAsked, await guard.body(request))
        if asked.model not in (None, self._name):
            return self._no_such_model(asked.model)
        prompts = asked.prompts(self._generator)
        rows = [
            self._generator.row(ids, sampling, text, asked.logprobs)
            for text, ids in prompts
            for sampling in asked.samplings(self._generator.context)
        ]
        return await self._answer(request, asked, Completions, rows, len(prompts))

    async def chat_completions(self, request: Request) -> Response:
        asked = openai.read(ChatAsked, await guard.body(request))
        if asked.model not in (None, self._name):
            return self._no_such_model(asked.model)
        if asked.max_completion_tokens is not None:
            asked.max_tokens = asked.max_completion_tokens
        turns = [message.turn() for message in asked.messages]
        ids = self._templated(turns).ids(turns)
        n_logprobs = asked.top_logprobs if asked.logprobs else None
        rows = [
            self._generator.row(ids, sampling, turns[-1]["content"], n_logprobs)
            for sampling in asked.samplings(self._generator.context)
        ]
        return await self._answer(request, asked, Chats, rows, 1)

    async def inspection(self, request: Request) -> Response:
        asked = openai.read(InspectionAsked, await guard.body(request))
        if asked.model not in (None, self._name):
            return self._no_such_model(asked.model)
        if (asked.text is None) == (asked.messages is None):
            raise UserError("give either text or messages")
        if asked.messages is not None:
            turns = [message.turn() for message in asked.messages]
            ids = self._templated(turns).marked(turns)[0].tolist()
        else:
            ids = self._generator.encode(asked.text or "")
        found = await _unless_gone(request, self._engine.call(inspect, self._generator, ids, asked.alternatives))
        return JSONResponse({"model": self._name} | found.described())

    def _templated(self, turns: list[dict[str, str]]) -> ChatTemplate:
        """The chat template. Raises UserError where there is none, and for text that no token can write."""
        if self._template is None:
            raise UserError(
                f"{self._name} has no chat template: it goes on from a text, see /v1/completions; "
                "finetune it for conversations first (docs/finetune.md)"
            )
        for turn in turns:
            self._generator.encode(turn["content"])
        return self._template

    async def _answer(
        self, request: Request, asked: CompletionAsked | ChatAsked, shape: Shape, rows: list[Row], n_prompts: int
    ) -> Response:
        if len(rows) > (most := min(self._engine.n_rows, self._engine.n_waiting)):
            raise UserError(f"{len(rows)} texts at once; at most {most}: ask for fewer prompts, or a smaller n")
        job = self._engine.submit(rows, asked.stream)
        head = {
            "id": f"{'chatcmpl' if shape is Chats else 'cmpl'}-{uuid.uuid4().hex}",
            "object": shape.chunk_object if asked.stream else shape.object,
            "created": int(time.time()),
            "model": self._name,
        }
        if asked.stream:
            count = partial(openai.usage, rows, n_prompts) if asked.stream_options.include_usage else None
            return _Events(self._events(job, shape, head, count))
        try:
            await _unless_gone(request, _finished(job))
        except BaseException:
            self._engine.cancel(job)
            raise
        choices = [
            shape.whole("".join(row.pieces), self._logprobs(shape, row, 0))
            | {"index": i, "finish_reason": openai.finished(row)}
            for i, row in enumerate(rows)
        ]
        return JSONResponse(head | {"choices": choices, "usage": openai.usage(rows, n_prompts)})

    async def _events(
        self, job: Job, shape: Shape, head: dict[str, Any], count: Callable[[], dict[str, int]] | None
    ) -> AsyncIterator[str]:
        """The chunks of a streamed answer: one for each row whose text has grown or ended."""
        sent = [(0, 0) for _ in job.rows]  # pieces and choices of each row
        ended = [False] * len(job.rows)
        try:
            async for _ in job.changes():
                for i, row in enumerate(job.rows):
                    finish_reason = openai.finished(row)  # before the pieces, which may still grow without it
                    (n_pieces, n_choices), now = sent[i], (len(row.pieces), len(row.choices))
                    text = "".join(row.pieces[n_pieces : now[0]])
                    if ended[i] or not (text or finish_reason):
                        continue
                    chunk = shape.chunk(text, self._logprobs(shape, row, n_choices, now[1]), not n_pieces)
                    chunk |= {"index": i, "finish_reason": finish_reason}
                    sent[i], ended[i] = now, finish_reason is not None
                    yield _event(head | {"choices": [chunk]})
            if count is not None:
                yield _event(head | {"choices": [], "usage": count()})
            yield "data: [DONE]\n\n"
        except ModelError:  # the answer has begun: there is no status to set any more
            yield _event(guard.failure(500, _FAILED))
        finally:
            self._engine.cancel(job)

    def _logprobs(self, shape: Shape, row: Row, begin: int, end: int | None = None) -> dict[str, Any] | None:
        if row.n_logprobs is None:
            return None
        return shape.logprobs(row.choices[begin:end], self._generator, row.choices[:begin])

    def _described(self) -> dict[str, Any]:
        config = self._generator.model.config
        return {
            "id": self._name,
            "object": "model",
            "created": self._begun,
            "owned_by": "you",
            "context": self._generator.context,
            "chat": self._template is not None,
            "n_layer": config.n_layer,
            "n_expert": config.n_expert,
            "moe_layers": moe_layers(self._generator.model.params),
        }

    def _no_such_model(self, name: str | None) -> JSONResponse:
        return guard.refusal(404, f"no model {name!r}; here is {self._name!r}", "model", "model_not_found")


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _finished(job: Job) -> None:
    async for _ in job.changes():
        pass


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; raises ClientDisconnect, and stops it, if whoever asked goes away first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
