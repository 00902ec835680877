"""`moe doctor`: does this machine have what the pipeline needs? Each check really does what it speaks of.

    all_well = report(deep=False, as_json=False)       # prints; False where a check fails
    for state, what, words in examine(checks(deep=True)): ...  # each as soon as it is known

light.py asks the machine and the project's files, in about a second and without torch. The others are deep:
computing.py computes with the model's parts, network.py asks servers.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import typer

from pipeline import console
from pipeline.cli.doctor import light
from pipeline.errors import UserError, refusal
from pipeline.tracking.server import redacted


class Finding(NamedTuple):
    """What a check has found; `words` say what to do unless all is well."""

    state: Literal["ok", "warn", "fail"]
    what: str
    words: str


def report(deep: bool, as_json: bool) -> bool:
    """Print the findings, one a line, or as one JSON list of objects; return whether none of them is a failure."""
    found = []
    for finding in examine(checks(deep)):
        found.append(finding)
        if not as_json:
            console.say(f"{finding.state:4}  {finding.what}: {finding.words}")
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in found], indent=2))
    return all(finding.state != "fail" for finding in found)


def examine(checks: Iterable[tuple[str, Callable[[], str]]]) -> Iterator[Finding]:
    """The findings of checks in order, without keys.

    A check returns what is well, raises UserWarning for what one can do without, and anything else where it fails.
    """
    for what, check in checks:
        try:
            finding = Finding("ok", what, check())
        except UserWarning as warning:
            finding = Finding("warn", what, str(warning))
        except UserError as error:
            finding = Finding("fail", what, str(error))
        except Exception as error:  # a check that fails is what we came for, whatever it raises
            last = str(error).strip().splitlines()[-1:]
            finding = Finding("fail", what, refusal(error) or " ".join([f"{type(error).__name__}:", *last]))
        yield finding._replace(words=redacted(finding.words))


def checks(deep: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    """The name and the function of each check; deep ones compute and ask servers, which takes half a minute."""
    yield from light.CHECKS
    if deep:
        from pipeline.cli.doctor import computing, network

        yield from computing.CHECKS
        yield from network.CHECKS
