"""The page in a real browser, its parts by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from pipeline.evaluate import evaluate, plots, previous, report, reports, sections
from pipeline.evaluate.report import Evaluation
from pipeline.params import Params
from tests import browser

CURVE = {
    "train": [(4096.0 * i, 7 / i) for i in range(1, 20)],
    "validation": [(4096.0 * i, 7.2 / i) for i in range(5, 20, 5)],
}
REPORTS = {"download": {"entropy_bits_per_byte": 0.25}, "tokenize": {}}
RUN = {"model": "tiny-stories", "experiment": "lanky-newt", "commit": "0123456789abcdef"}
STAGES: dict[str, Any] = {
    "download": {"description": "the bundled storyteller", "documents": 200, "licence": "as this project"},
    "clean": {"documents_out": 200},
    "tokenize": {
        "vocab_size": 512,
        "train": {"documents": 170, "tokens": 60_000, "bytes": 140_000},
        "val": {"documents": 30, "tokens": 10_000, "bytes": 25_000},
    },
    "train": {
        "parameters": {"total": 123_456, "active": 65_432}, "tokens": 81_920, "epochs": 1.3, "steps": 20,
        "seconds": 71.0, "finished": "2026-11-26",
        "tokens_per_second": 1153.8, "devices": 1, "device": "cpu", "precision": "32-true",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def details(work: Path, parameters: Params) -> dict[str, Any]:
    hostile = "Once </article><script>console.error('ran')</script> upon"
    config = parameters.evaluate.model_copy(update={"prompts": [*parameters.evaluate.prompts, hostile]})
    return evaluate.evaluate(
        parameters.model_copy(update={"evaluate": config}),
        work / "models/litgpt", work / "data/tokens", work / "data/clean", REPORTS,
    )[1]  # fmt: skip


@pytest.fixture(scope="module")
def page(details: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    before = json.loads(json.dumps(details))
    before["figures"]["val"]["bits_per_byte"] += 0.1
    before["params"]["model"]["n_expert"] = 2
    report.write(
        folder / "report.html", Evaluation(details, STAGES, before, RUN), plots.draw(details, CURVE, folder / "plots")
    )
    return folder / "report.html"


@pytest.mark.skipif(browser.find() is None, reason=f"no browser here ({', '.join(browser.NAMES)})")
def test_in_a_browser_it_is_whole_fits_and_asks_for_nothing(page: Path, tmp_path: Path) -> None:
    with browser.Browser() as chromium:
        for width, height, dark in ((320, 640, False), (390, 844, True), (768, 1024, False), (1280, 900, True)):
            seen = chromium.open(page.resolve().as_uri(), width, height, dark)
            assert seen.errors == []
            assert seen.requests == []
            assert seen.evaluate("document.documentElement.scrollWidth") == width, "the page overflows to the side"
            assert seen.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
            drawn = "[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
            heights = seen.evaluate(drawn)
            assert len(heights) == len(plots.PICTURES)
            assert min(heights) > 80
            # letters in the drawings stay letters of the page, in its colours, and large enough to read
            letters = seen.evaluate(
                "[...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height)"
            )
            assert min(letters) >= 8
            assert seen.evaluate("document.querySelectorAll('script').length") == 0
            contrast = seen.evaluate(CONTRAST)
            assert min(contrast.values()) >= 4.5, contrast
        seen.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 50_000


CONTRAST = """(() => {
  const style = getComputedStyle(document.documentElement);
  const light = name => {
    const hex = style.getPropertyValue('--' + name).trim();
    const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const pairs = [['ink', 'card'], ['ink', 'ground'], ['ink', 'mark'], ['ink', 'first-soft'], ['muted', 'card'],
    ['muted', 'ground'], ['muted', 'first-soft'], ['first', 'card'], ['second', 'card'],
    ['good', 'card'], ['bad', 'card']];
  return Object.fromEntries(pairs.map(([a, b]) => [a + ' on ' + b, ratio(a, b)]));
})()"""


def test_it_shows_data_model_training_and_what_changed(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for shown in (
        "the bundled storyteller",
        "123,456",
        "65,432",
        "81,920",
        "1 min 11 s",
        "4 per layer, 2 for each token",
        "tiny-stories",
        "lanky-newt",
        "0123456",
        "2026-11-26",
    ):
        assert shown in text
    assert re.search(r"model\.n_expert</dt><dd><del>2</del> → 4", text)
    assert re.search(r'class="better">\N{MINUS SIGN}0\.1000', text)
    assert not re.search(r'(src|href)="(?!data:|#)', text), "something would be fetched"


@pytest.mark.skipif(browser.find() is None, reason=f"no browser here ({', '.join(browser.NAMES)})")
def test_stories_are_shown_token_by_token_in_the_colours_that_one_chooses(page: Path, details: dict[str, Any]) -> None:
    stories = details["samples"]["inspected"]
    assert stories
    colours = "[...document.querySelectorAll('.shown span')].map(s => getComputedStyle(s).backgroundImage)"
    with browser.Browser() as chromium:
        seen = chromium.open(page.resolve().as_uri(), 1280, 900)
        texts = seen.evaluate("[...document.querySelectorAll('.shown')].map(p => p.textContent)")
        assert texts == ["".join(token["text"] for token in story["tokens"]) for story in stories]
        assert set(seen.evaluate(colours)) == {"none"}
        for layer in range(len(stories[0]["layers"])):
            seen.click(f"#by-{layer}")
            heaviest = [
                tuple(v["expert"] for v in sorted(token["experts"][layer], key=lambda v: -v["weight"]))
                for story in stories
                for token in story["tokens"]
            ]
            by_colour = dict(zip(seen.evaluate(colours), heaviest, strict=True))
            assert [by_colour[colour] for colour in seen.evaluate(colours)] == heaviest  # a pair, a colour
            assert len(by_colour) == len(set(heaviest))
        assert seen.errors == []


def test_without_earlier_reports_it_says_so(details: dict[str, Any], tmp_path: Path) -> None:
    pictures = plots.draw(details, {}, tmp_path / "plots")
    assert "curve" not in pictures
    report.write(tmp_path / "report.html", Evaluation(details, reports.read(tmp_path), None, {}), pictures)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nothing to compare" in text
    assert "Learning" not in text


def test_a_dense_model_has_no_section_on_experts(details: dict[str, Any], tmp_path: Path) -> None:
    figures = {name: value for name, value in details["figures"].items() if name not in ("routing", "baselines")}
    dense = details | {"routing": {}, "figures": figures}
    assert sections.experts(Evaluation(dense, STAGES, None, RUN)) is None
    report.write(
        tmp_path / "report.html", Evaluation(dense, STAGES, None, RUN), plots.draw(dense, CURVE, tmp_path / "plots")
    )
    assert "<h2>Experts" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_baselines_are_sorted_and_scaled() -> None:
    figures = {
        "val": {"bits_per_byte": 0.5},
        "baselines": {"gzip": 2.0, "kneser_ney_5": 0.6},
        "generator": {"entropy_bits_per_byte": 0.4},
    }
    details = {"figures": figures, "params": {"evaluate": {"baseline_bytes": 5}}}
    found = sections.baselines(Evaluation(details, {}, None, {}))
    assert found is not None
    assert [(row["name"], row["width"]) for row in found["rows"]] == [
        ("gzip -9", 100), ("5-gram Kneser–Ney", 30), ("this model", 25), ("the generator's entropy", 20)
    ]  # fmt: skip


def test_verdicts_follow_the_direction_that_is_good() -> None:
    before = {"val": {"loss": 2.0, "accuracy": 0.5, "perplexity": 7.0}, "samples": {"distinct_2": 0.5}}
    after = {"val": {"loss": 1.9, "accuracy": 0.4, "perplexity": 7.0}, "samples": {"distinct_2": 0.7}}
    same = {"val_set": {"text": "t", "tokens": "n"}}
    found = previous.compared({"figures": before, **same}, {"figures": after, **same})
    rows = {row["name"]: (row["difference"], row["verdict"]) for row in found}
    assert rows == {
        "loss, nats per token": ("−0.1000", "better"),
        "perplexity": ("0", "same"),
        "next token right": ("−0.1000", "worse"),
        "different token pairs": ("+0.200", ""),
    }


def test_each_section_is_a_function_and_a_template() -> None:
    templates = {
        path.name.removesuffix(".html.jinja") for path in (Path(report.__file__).parent / "templates").iterdir()
    }
    assert templates == {section.__name__ for section in sections.SECTIONS} | {"page", "macros"}


def test_what_cannot_be_compared_is_marked(details: dict[str, Any], tmp_path: Path) -> None:
    figures = json.loads(json.dumps(details["figures"])) | {"not_comparable": "the tokenizer loses text"}
    del figures["val"]["bits_per_byte"], figures["baselines"], figures["generator"]
    lossy = details | {"figures": figures}
    other = details | {"val_set": {"text": "another", "tokens": "another"}}
    assert sections.baselines(Evaluation(lossy, STAGES, other, RUN)) is None
    report.write(tmp_path / "report.html", Evaluation(lossy, STAGES, other, RUN), {})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No bits per byte: the tokenizer loses text" in text
    assert "The validation text is another one than in the run before" in text
    assert "bits/byte" not in text
    assert "not comparable" in text


@pytest.mark.parametrize("odd", [None, "x", -1, 1e400, [], {}, {"total": "x"}, True])
def test_odd_values_in_the_reports_of_other_stages_are_left_out(details: dict[str, Any], odd: Any) -> None:
    stages = {name: dict.fromkeys([*report_, "finished"], odd) for name, report_ in STAGES.items()}
    assert sections.training(Evaluation(details, stages, None, {}))["facts"]["Model"]["heads"]
    assert sections.summary(Evaluation(details, stages, None, {}))["val"]


def test_lengths_of_context_that_few_tokens_have_are_left_out(details: dict[str, Any], tmp_path: Path) -> None:
    few = [{"context": 200, "loss": 99.0, "tokens": 1}]
    plots.draw(details | {"by_position": details["by_position"] + few}, {}, tmp_path)
    drawn = (tmp_path / "by_position.csv").read_text(encoding="utf-8").splitlines()
    assert drawn[0].replace('"', "") == "context,loss,tokens"
    assert [line.split(",")[0] for line in drawn[1:]] == [str(p["context"]) for p in details["by_position"]]


def test_prompt_and_overlap_are_marked_and_the_rest_is_escaped() -> None:
    story = {"prompt": "A <b>", "text": " cat & a dog", "overlap_span": [2, 9]}
    assert report._marked(story) == Markup("<b>A </b><mark><b>&lt;b&gt;</b></mark><mark> cat</mark> &amp; a dog")
    assert report._marked({"prompt": "A", "text": "b"}) == Markup("<b>A</b>b")


def test_the_curve_is_read_from_the_csvs_of_training(tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("step,tokens,loss,lm_loss,lr\n1,100,5.0,4.5,0.1\n2,200,4.0,3.5,0.1\n", "utf-8")
    (tmp_path / "val_loss.csv").write_text("step,tokens,val_loss\n2,200,3.9\n", encoding="utf-8")
    assert reports.read_curve(tmp_path) == {"train": [(100, 4.5), (200, 3.5)], "validation": [(200, 3.9)]}
    assert reports.read_curve(tmp_path / "none") == {}
