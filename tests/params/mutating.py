"""Parameters with something wrong in them, as people and programs make them: for tests and `benchmarks/fuzz.py`."""

import copy
import random
from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        "",
        " ",
        "auto",
        "off",
        "no such thing",
        "名前",
        "\x00",
        "a" * 5000,
        "1e3",
        "-1",
        [],
        {},
        [None],
    ),
    *(0, 1, -1, 2, 3, 7, 255, 2**16, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**18, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *({"a": 1}, [1, 2, 3], [[]], {1: 2}, ["x"] * 100, (0.9, 0.95), 3 + 0j, b"bytes"),
)


def mutated(params: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """One to three changes somewhere in the parameters: a value, a key that goes, comes, or is called otherwise."""
    changed = copy.deepcopy(params)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(changed))
        holder, key = draw.choice(places)
        kind = draw.random()
        if kind < 0.75:
            holder[key] = _near(holder[key], draw) if draw.random() < 0.4 else copy.deepcopy(draw.choice(ODD))
        elif kind < 0.85 and isinstance(holder, dict):
            del holder[key]
        elif kind < 0.95 and isinstance(holder, dict):
            holder[f"{key}s"] = copy.deepcopy(draw.choice(ODD))
        else:
            other, name = draw.choice(places)
            holder[key] = copy.deepcopy(other[name])
        if not isinstance(changed, dict) or not changed:
            return {"odd": changed}
    return changed


def _near(value: Any, draw: random.Random) -> Any:
    """The value scaled, negated or misspelt."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return draw.choice((value * 2, value * 3, value * 1000, -value, value + 1, value - 1, value / 7, value * 10**9))
    if isinstance(value, str):
        return draw.choice((value.upper(), value[:-1], value + "x", value[::-1]))
    return draw.choice((value * 2 if isinstance(value, list) else [value], None, str(value)))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
