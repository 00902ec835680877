"""Every model preset, built on the meta device: its counted parameters are those that its file states."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline import params
from pipeline.model import size
from tests.model.small import ROOT

PRESETS = sorted((ROOT / "configs/model").glob("*.yaml"))
_COUNTED = re.compile(r"^# counted: vocabulary (\d+), total ([\d.]+) M, active ([\d.]+) M$", re.MULTILINE)


def _read(path: Path) -> tuple[params.Model, int, float, float]:
    text = path.read_text(encoding="utf-8")
    stated = _COUNTED.search(text)
    assert stated, f"{path} has no line '# counted: vocabulary V, total X M, active Y M'"
    return params.Model(**yaml.safe_load(text)), int(stated[1]), float(stated[2]), float(stated[3])


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_counted_parameters_are_those_in_the_file(path: Path) -> None:
    model, vocab_size, total, active = _read(path)
    assert model.vocab_size in (None, vocab_size)
    counted = size.count(model, vocab_size)
    assert round(counted.total / 1e6, 1) == total
    assert round(counted.active / 1e6, 1) == active


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("moe_200m", 549.1, 209.4), ("llama3_moe_200m", 303.6, 176.2), ("microstories", 43.9, 43.9)],
)
def test_presets_that_were_promised_have_the_promised_size(name: str, total: float, active: float) -> None:
    assert _read(ROOT / f"configs/model/{name}.yaml")[2:] == (total, active)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("baseline", ["active", "total"])
def test_dense_baselines_have_the_size_they_are_named_for(path: Path, baseline: str) -> None:
    model, vocab_size, _, _ = _read(path)
    counted = size.count(model, vocab_size)
    dense = size.count(model.model_copy(update={"dense_baseline": baseline}), vocab_size)
    assert dense.total == dense.active
    assert dense.total == pytest.approx(getattr(counted, baseline), rel=0.005)
