"""reports/report.html: one page, whole in itself, that shows an evaluation to a person on a phone or a desk.

    write(Path("reports/report.html"), Evaluation(details, reports.read(Path("reports")), before, run), pictures)

`details` from evaluate.evaluate, `pictures` from plots.draw, `before` the details of the run it is compared with.
Nothing is fetched: style and pictures are in the page. What it shows, and in which order, is in sections.py; each
section has its own template in templates/.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.evaluate.sections import SECTIONS, Evaluation
from pipeline.files import written_whole


def write(into: Path, evaluation: Evaluation, pictures: dict[str, str]) -> None:
    """Render the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.evaluate", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "n": _number,
        "pct": lambda x, digits=1: f"{100 * x:.{digits}f}\N{NARROW NO-BREAK SPACE}%",
        "difference": lambda x, digits: f"{x:+.{digits}f}".replace("-", "\N{MINUS SIGN}"),
        "marked": _marked,
    }
    contents = {section.__name__: section(evaluation) for section in SECTIONS}
    page = environment.get_template("page.html.jinja").render(
        sections={name: content for name, content in contents.items() if content is not None},
        pictures={name: Markup(svg) for name, svg in pictures.items()},
    )
    with written_whole(into) as partial:
        partial.write_text(page, encoding="utf-8")


def _marked(story: dict[str, Any]) -> Markup:
    """Prompt in bold, the longest overlap with the training text marked."""
    whole, cut = story["prompt"] + story["text"], len(story["prompt"])
    begin, end = story.get("overlap_span", [0, 0])
    marks = sorted({0, cut, begin, end, len(whole)})
    parts = []
    for left, right in pairwise(marks):
        part = Markup.escape(whole[left:right])
        if right <= cut:
            part = Markup("<b>{}</b>").format(part)
        if begin <= left < end:
            part = Markup("<mark>{}</mark>").format(part)
        parts.append(part)
    return Markup("").join(parts)


def _number(value: float, digits: int = 3) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}" if math.isfinite(value) else "–"
