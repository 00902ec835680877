"""moe compare: what settings and spreads it makes of experiments; tests/test_pipeline.py compares real ones."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.compare import experiments, pages
from pipeline.cli.compare.experiments import Experiment, Point
from pipeline.errors import UserError


def _experiment(name: str, bits: float, seed: int = 0, curve: bool = True, **parameters: Any) -> Experiment:
    figures = {"bits_per_byte": bits, "loss": bits, "tokens_per_second": 1000.0, "parameters": 2e6}
    points = [Point(100, 1.0, 3.0), Point(200, 2.1, 2.5)] if curve else []
    return Experiment(name, {"train.seed": seed, "evaluate.seed": seed} | parameters, figures, points)


def test_runs_that_differ_in_the_seed_alone_are_one_setting_with_a_spread() -> None:
    found = [
        _experiment("a", 0.30, seed=1, **{"model.n_expert": 4, "model.n_layer": 2}),
        _experiment("b", 0.20, seed=1, **{"model.n_expert": 8, "model.n_layer": 2}),
        _experiment("c", 0.32, seed=2, **{"model.n_expert": 4, "model.n_layer": 2}),
    ]
    best, other = experiments.settings(found)
    assert (best.name, other.name) == ("n_expert=8", "n_expert=4")
    assert [each.name for each in other.experiments] == ["a", "c"]
    head, first, second = pages.rows([best, other])
    assert head == ["", "runs", "bits per byte", "tokens/s", "parameters"]
    assert first == ["n_expert=8", "1", "0.2000", "1,000", "2.00 M"]
    assert second == ["n_expert=4", "2", "0.3100 ± 0.0100", "1,000", "2.00 M"]


def test_runs_without_a_difference_are_called_by_their_names() -> None:
    (only,) = experiments.settings([_experiment("a", 0.3, seed=1), _experiment("b", 0.4, seed=2)])
    assert only.name == "a, b"


def test_a_parameter_that_one_run_does_not_have_is_a_difference() -> None:
    old, new = experiments.settings([_experiment("a", 0.1), _experiment("b", 0.2, **{"train.new": True})])
    assert (old.name, new.name) == ("new=None", "new=True")


def test_names_and_values_cannot_write_into_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    found = [_experiment(evil, 0.3, **{"model.name": evil}), _experiment("b", 0.4, curve=False, **{"model.name": "b"})]
    pages.write(tmp_path / "new/compare.html", experiments.settings(found))
    page = (tmp_path / "new/compare.html").read_text(encoding="utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;") >= 2
    assert page.count("<svg") == 2 and "its curve is not in DVC's cache" in page
    assert "http" not in page.replace("http://www.w3.org/", ""), "it fetches nothing"


def test_a_curve_of_before_seconds_were_written_down_is_shown_over_tokens(tmp_path: Path) -> None:
    old = dataclasses.replace(
        _experiment("a", 0.3), curve=[Point(100, float("nan"), 3.0), Point(200, float("nan"), 2.5)]
    )
    pages.write(tmp_path / "compare.html", experiments.settings([old, _experiment("b", 0.4)]))
    assert (tmp_path / "compare.html").read_text(encoding="utf-8").count("<svg") == 2


def test_a_page_without_any_curve_has_no_pictures(tmp_path: Path) -> None:
    pages.write(tmp_path / "compare.html", experiments.settings([_experiment("a", 0.3, curve=False)]))
    assert "<svg" not in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_a_folder_that_is_no_project_of_dvc_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="DVC cannot read the experiments here"):
        experiments.read([])
