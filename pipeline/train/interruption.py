"""SIGINT and SIGTERM while training: finish the step, write a checkpoint, say so, exit with 130 or 143."""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupted(Exception):  # noqa: N818 - no error
    """Training was asked to stop and has; `exit_code` is what shells expect (128 + the signal's number)."""

    def __init__(self, number: int, done: int, total: int, folder: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {done} of {total}; a checkpoint is in {folder}: "
            "the same command goes on from there"
        )
        self.exit_code = 128 + number


class Interruption:
    """While entered, the first signal is noted in `number`; a second one acts as it always does."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for each in (signal.SIGINT, signal.SIGTERM):
                self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
