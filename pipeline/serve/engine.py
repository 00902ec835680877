"""One thread that runs the model for all requests: prompts join its batch as they come and leave when they are done.

engine = Engine(generator, n_rows=16, n_waiting=64)
job = engine.submit(rows, stream=True)        # raises BusyError where too many wait
async for _ in job.changes(): ...             # the rows' pieces have grown
engine.cancel(job)                            # nobody listens any more
inspected = await engine.call(inspect, generator, ids)
engine.close()
"""

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from pipeline.generate.batch import Row
from pipeline.generate.generation import Generator

T = TypeVar("T")


class BusyError(Exception):
    """As many prompts wait as may."""


class ModelError(Exception):
    """The model failed while it worked on a request; the reason is on standard error."""


class Job:
    """The rows of one request. Made and read in the event loop that made it; the engine's thread only wakes it."""

    def __init__(self, rows: list[Row], stream: bool) -> None:
        self.rows = rows
        self._stream = stream
        self._failed = False
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()

    @property
    def done(self) -> bool:
        return all(row.finish_reason for row in self.rows)

    async def changes(self) -> AsyncIterator[None]:
        """An item each time that the rows have changed, the last when all are done; without `stream` only that one.

        Raises ModelError.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            done = self.done  # asked first: what comes while the caller looks wakes it once more
            if self._failed:
                raise ModelError
            yield
            if done:
                return

    def wake(self, failed: bool) -> None:
        if failed or self._stream or self.done:
            self._failed = failed
            self._loop.call_soon_threadsafe(self._changed.set)


class Engine:
    def __init__(self, generator: Generator, n_rows: int, n_waiting: int) -> None:
        """`n_rows`: prompts in the batch at most; `n_waiting`: further prompts that may wait for a place in it."""
        self.n_rows, self.n_waiting = n_rows, n_waiting
        self._generator = generator
        self._batch = generator.batch()
        self._waiting: deque[Row] = deque()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._cancelled: list[Row] = []
        self._job: dict[int, Job] = {}  # of each row, by its identity
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, rows: list[Row], stream: bool) -> Job:
        """Put the prompts of one request in the queue, all or none; raises BusyError."""
        job = Job(rows, stream)
        with self._changed:
            self._refuse_where_full(len(rows))
            self._waiting.extend(rows)
            self._job |= {id(row): job for row in rows}
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Stop working for this request, before the next token."""
        with self._changed:
            rows = [row for row in job.rows if self._job.pop(id(row), None)]
            self._cancelled += rows
            self._changed.notify()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function` returns, called between two tokens, while nothing else uses the model; raises BusyError."""
        future: Future[T] = Future()
        with self._changed:
            self._refuse_where_full(1)
            self._calls.append((future, lambda: function(*arguments)))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread; what was not done stays so."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _refuse_where_full(self, n: int) -> None:
        if len(self._waiting) + len(self._calls) + n > self.n_waiting:
            raise BusyError

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._calls or self._cancelled or self._batch.rows):
                    self._changed.wait()
                if self._closed:
                    return
                cancelled, self._cancelled = self._cancelled, []
                for row in cancelled:
                    if row in self._waiting:
                        self._waiting.remove(row)
                free = self.n_rows - len(self._batch.rows) + sum(row in self._batch.rows for row in cancelled)
                joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
                call = self._calls.popleft() if self._calls else None
            if call:
                self._answer(*call)
            try:
                self._advance(cancelled, joining)
            except Exception:  # of the device, say, whose memory is full: these requests fail, others go on
                traceback.print_exc()
                rows, self._batch = [*self._batch.rows, *joining], self._generator.batch()
                self._wake(rows, failed=True)

    def _advance(self, cancelled: list[Row], joining: list[Row]) -> None:
        self._batch.drop(cancelled)
        if joining:
            self._batch.add(joining)
        if rows := self._batch.rows:
            self._batch.step()
            self._wake(rows)

    def _wake(self, rows: list[Row], failed: bool = False) -> None:
        with self._changed:
            jobs = {id(job): job for row in rows if (job := self._job.get(id(row)))}
            for row in rows:
                if row.finish_reason or failed:
                    self._job.pop(id(row), None)
        for job in jobs.values():
            job.wake(failed)

    @staticmethod
    def _answer(future: "Future[Any]", function: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)
