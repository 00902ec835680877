"""The page in a real browser: write, stop, look at a token's experts, two texts; wide and narrow, light and dark."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.generate.generation import Generator
from pipeline.generate.inspection import inspect
from pipeline.generate.sampling import Sampling
from tests import browser
from tests.browser import Browser, Page
from tests.serve.conftest import Gate, Serve, Serving, until

pytestmark = pytest.mark.skipif(browser.find() is None, reason="needs Chromium")
SIZES = [(1200, 900, False), (390, 844, True)]
VIEW = "[...document.querySelectorAll('.view')].at(-1)"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as found:
        yield found


def opened(chromium: Browser, serving: Serving, width: int, height: int, dark: bool) -> Page:
    page = chromium.open(serving.address, width, height, dark)
    page.wait_for("document.querySelector('textarea') === document.activeElement")
    page.evaluate("document.querySelector('details').open = true")
    return page


def set_to(page: Page, selector: str, value: str) -> None:
    page.evaluate(
        f"(e => (e.value = '{value}', e.dispatchEvent(new Event('change'))))(document.querySelector('{selector}'))"
    )


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):  # to be looked at by a person
        page.screenshot(Path(folder) / f"{name}.png")


def is_well(page: Page, width: int) -> None:
    assert page.errors == []
    assert all(url.startswith("http://127.0.0.1:") for url in page.requests)
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_a_text_is_written_and_each_token_shows_its_probability_and_experts(
    chromium: Browser, serve: Serve, base: Generator, width: int, height: int, dark: bool
) -> None:
    page = opened(chromium, serve(base), width, height, dark)
    set_to(page, "#temperature", "0")
    set_to(page, "#max_tokens", "20")
    page.type("Once upon a time")
    page.press("Enter")
    page.wait_for(f"!{VIEW}.hidden")
    text = "Once upon a time" + base.generate(["Once upon a time"], Sampling(20, 0))[0].text
    found = inspect(base, base.encode(text))
    assert page.evaluate("document.querySelector('.tokens').textContent") == text
    page.evaluate("document.querySelector('.token').focus()")
    page.press("ArrowRight")
    page.press("ArrowRight")  # by keyboard to the third token, if the first is where it began
    at = page.evaluate("[...document.querySelectorAll('.token')].indexOf(document.activeElement)")
    assert at > 1 and page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    token = found.tokens[at]
    shown = page.evaluate("[...document.querySelectorAll('.visits > div')].map(e => e.textContent)")
    assert shown == [
        f"layer {layer}" + "".join(f"{expert}: {weight:.2f}" for expert, weight in visits)
        for layer, visits in zip(found.layers, token.experts, strict=True)
    ]
    chances = page.evaluate("[...document.querySelectorAll('.chance .value')].map(e => e.textContent)")
    assert len(chances) in (5, 6)
    loads = page.evaluate("[...document.querySelectorAll('.heat td')].map(e => Number(e.textContent))")
    assert loads == pytest.approx([100 * share for shares in found.load() for share in shares], abs=0.51)
    set_to(page, "#colour", "0")
    expert = token.experts[0][0][0]
    page.click(f".heat [data-expert='{expert}']")
    faint = page.evaluate("[...document.querySelectorAll('.token')].map(e => e.classList.contains('faint'))")
    assert faint == [expert not in [e for e, _ in other.experts[0]] for other in found.tokens]
    assert page.evaluate("document.querySelector('.token').style.background").startswith("linear-gradient")
    is_well(page, width)
    shot(page, f"text-{width}")


def test_writing_stops_at_the_button_and_goes_on(chromium: Browser, serve: Serve, base: Generator, gate: Gate) -> None:
    serving = serve(base)
    page = opened(chromium, serving, 1200, 900, False)
    set_to(page, "#seed", "7")  # any other text might end by itself before it is stopped
    page.type("Once upon a time")
    page.click(".main")
    gate.release(3)
    page.wait_for("document.querySelector('.turns').textContent.length > 16")
    (row,) = serving.engine._batch.rows
    page.click(".stop")
    page.wait_for("document.querySelector('.status').textContent.startsWith('stopped after')")
    until(lambda: not serving.engine._job)  # the server has seen it too
    gate.release(1000)
    page.wait_for(f"!{VIEW}.hidden")
    assert row.finish_reason is None and row.n_tokens <= 5
    before = page.evaluate("document.querySelector('.tokens').textContent")
    set_to(page, "#max_tokens", "4")
    page.click(".more")
    page.wait_for(f"!{VIEW}.hidden && document.querySelector('.tokens').textContent.length > {len(before)}")
    assert page.evaluate("document.querySelector('.tokens').textContent").startswith(before)
    is_well(page, 1200)


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_a_conversation_forgets_its_first_turns_where_they_do_not_fit(
    chromium: Browser, serve: Serve, talking: Generator, width: int, height: int, dark: bool
) -> None:
    page = opened(chromium, serve(talking), width, height, dark)
    set_to(page, "#max_tokens", "6")
    for _ in range(6):
        page.type("the dog and the cat went to the park")
        page.press("Enter")
        page.wait_for(f"!document.querySelector('.main').disabled && !{VIEW}.hidden")
    assert page.evaluate("document.querySelectorAll('.turn.user').length") == 6
    assert "turns did not fit the context" in page.evaluate("document.querySelector('.status').textContent")
    assert page.evaluate("document.querySelector('.tokens').textContent").count("<|endoftext|>") > 1
    page.errors = [error for error in page.errors if "status of 400" not in error]  # where a turn did not fit
    is_well(page, width)
    shot(page, f"chat-{width}")


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_two_texts_stand_side_by_side_and_html_in_them_is_text(
    chromium: Browser, serve: Serve, base: Generator, width: int, height: int, dark: bool
) -> None:
    page = opened(chromium, serve(base), width, height, dark)
    page.type("the <b>dog</b> & the cat")
    page.click(".look")
    page.wait_for(f"!{VIEW}.hidden")
    page.click("#compare")
    page.click(".pane:nth-child(2) textarea")
    page.type("the park")
    page.click(".pane:nth-child(2) .look")
    page.wait_for(f"!{VIEW}.hidden")
    texts = page.evaluate("[...document.querySelectorAll('.tokens')].map(e => e.textContent)")
    assert texts == ["the <b>dog</b> & the cat", "the park"]
    tops = page.evaluate("[...document.querySelectorAll('.pane')].map(e => e.getBoundingClientRect().top)")
    assert (tops[0] == tops[1]) == (width > 900)
    is_well(page, width)
    shot(page, f"two-{width}")


def test_a_refusal_is_shown_in_words_and_a_locked_server_asks_for_its_token(
    chromium: Browser, serve: Serve, base: Generator
) -> None:
    page = opened(chromium, serve(base), 1200, 900, False)
    page.type("the " * 100)
    page.press("Enter")
    page.wait_for("document.querySelector('.status').classList.contains('bad')")
    assert "the model's context is 64" in page.evaluate("document.querySelector('.status').textContent")
    locked = chromium.open(serve(base, host="0.0.0.0", token="0123456789abcdef").address, 1200, 900)
    locked.wait_for("document.querySelector('dialog').open")
    locked.evaluate("document.querySelector('#token').focus()")
    locked.type("0123456789abcdef")
    locked.press("Enter")
    locked.wait_for("document.querySelector('textarea')")
    assert locked.evaluate("document.title") == "tiny"
