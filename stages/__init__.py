"""The six stages, each run as `python -m stages.NAME`. From here on Ctrl-C and SIGTERM end one with a sentence."""

import signal
import sys
from types import FrameType


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave through every `finally`, so that nothing half-written stays; the exit code is what shells expect."""
    signal.signal(number, signal.SIG_IGN)  # `timeout` and terminals send it to the group and to the process
    sys.excepthook = lambda *_: sys.exit(128 + number)  # where compiled code wraps the exit in an error of its own
    print(f"stopped by {signal.Signals(number).name}; run the same command again", file=sys.stderr)
    sys.exit(128 + number)


if sys.argv[0] == "-m":  # a stage is being started, not imported
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _stop)
