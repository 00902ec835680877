"""The whole evaluation of a small model, as the stage runs it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import yaml
from click.testing import Result
from typer.testing import CliRunner

from pipeline.errors import UserError
from pipeline.evaluate import evaluate, token_set
from pipeline.model.build import MoEGPT
from pipeline.params import Params
from pipeline.tokenize.tokenizer import build as build_tokenizer
from pipeline.tokens.store import TokenStore
from stages.evaluate import app

REPORTS = {"download": {"entropy_bits_per_byte": 0.25}, "tokenize": {"tokenizer": {"lossless": True}}}


@pytest.fixture(scope="module")
def measured(work: Path, parameters: Params) -> tuple[dict[str, Any], dict[str, Any]]:
    return evaluate.evaluate(parameters, work / "models/litgpt", work / "data/tokens", work / "data/clean", REPORTS)


def test_bits_per_byte_is_the_loss_of_all_tokens_over_all_bytes(
    measured: tuple[dict[str, Any], dict[str, Any]], work: Path, model: MoEGPT
) -> None:
    store = TokenStore(work / "data/tokens/val")
    ids = torch.from_numpy(store.read(0, store.n_tokens))
    nats = 0.0
    with torch.inference_mode():
        for begin in range(0, store.n_tokens - 1, 48):
            block = ids[begin : begin + 49]
            log_p = model.eval()(block[None, :-1])[0].double().log_softmax(-1)
            nats -= float(log_p.gather(1, block[1:, None]).sum())
    val = token_set.whole(work / "data/tokens/val", work / "data/clean/val")
    n_bytes = sum(len(text.encode()) for text in val.texts)
    found = measured[0]["val"]
    assert (found["tokens"], found["bytes"]) == (store.n_tokens - 1, n_bytes)
    assert found["loss"] == pytest.approx(nats / (store.n_tokens - 1), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)
    assert measured[0]["generator"]["gap_bits_per_byte"] == pytest.approx(found["bits_per_byte"] - 0.25)


def test_sources_and_lengths_add_up_to_the_val_set(measured: tuple[dict[str, Any], dict[str, Any]]) -> None:
    figures, details = measured
    for part in ("by_source", "by_length"):
        groups = details[part]
        assert sum(g["tokens"] for g in groups) == figures["val"]["tokens"]
        assert sum(g["bytes"] for g in groups) == figures["val"]["bytes"]
        total = sum(g["loss"] * g["tokens"] for g in groups) / figures["val"]["tokens"]
        assert total == pytest.approx(figures["val"]["loss"])
    assert [g["source"] for g in details["by_source"]] == ["shelf 0", "shelf 1"]
    assert sum(g["documents"] for g in details["by_length"]) == 30


def test_an_untrained_model_is_worse_than_counting(measured: tuple[dict[str, Any], dict[str, Any]]) -> None:
    baselines = measured[0]["baselines"]
    assert baselines["kneser_ney_5"] < baselines["unigram"] < measured[0]["val"]["bits_per_byte"]
    assert baselines["zstd_with_training_text"] < baselines["zstd"]


def test_the_figures_are_numbers_that_dvc_can_compare(measured: tuple[dict[str, Any], dict[str, Any]]) -> None:
    def leaves(nested: Any) -> list[Any]:
        return [leaf for value in nested.values() for leaf in leaves(value)] if isinstance(nested, dict) else [nested]

    assert all(isinstance(leaf, int | float) and math.isfinite(leaf) for leaf in leaves(measured[0]))
    json.dumps(measured[1])


@pytest.mark.parametrize(
    ("path", "damage", "words"),
    [
        ("data/tokens/val/documents.i64", lambda raw: raw[:8] + raw[16:24] * 2 + raw[24:], "documents.i64 is damaged"),
        ("data/tokens/val/documents.i64", lambda raw: b"", "documents.i64"),
        ("data/clean/val/part-00000.parquet", lambda raw: raw[:300] + bytes(200) + raw[500:], "dvc repro clean"),
        ("data/clean/val/part-00000.parquet", lambda raw: b"PAR1", "dvc repro clean"),
        ("reports/train.json", lambda raw: b'{"tokens": 1', "reports/train.json is damaged"),
        ("reports/download.json", lambda raw: b"[1]", "reports/download.json holds no JSON object"),
        ("reports/tokenize.json", lambda raw: b"\xff\xfe", "reports/tokenize.json is damaged"),
    ],
)
def test_what_is_damaged_is_named(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, damage: Any, words: str
) -> None:
    for name in ("data", "models"):
        shutil.copytree(work / name, tmp_path / name)
    shutil.copy(work / "params.yaml", tmp_path)
    (tmp_path / "reports").mkdir()
    damaged = tmp_path / path
    damaged.write_bytes(damage(damaged.read_bytes() if damaged.is_file() else b""))
    done = run_stage(tmp_path, monkeypatch)
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert words in " ".join(done.output.split())


def test_tokens_that_the_model_does_not_know_are_refused(work: Path) -> None:
    val = token_set.whole(work / "data/tokens/val", work / "data/clean/val")
    largest = int(val.tokens_N.max())
    assert evaluate._fitting(val, Path("data/tokens/val"), largest + 1) is val
    with pytest.raises(UserError, match=rf"data/tokens/val holds the token {largest}, the model has {largest}"):
        evaluate._fitting(val, Path("data/tokens/val"), largest)


def test_parts_that_are_switched_off_are_left_out(work: Path, parameters: Params) -> None:
    off = {"train_sample_tokens": 0, "baseline_bytes": 0, "memorisation_bytes": 0, "temperatures": [0.0]}
    config = parameters.evaluate.model_copy(update=off)
    figures, details = evaluate.evaluate(
        parameters.model_copy(update={"evaluate": config}),
        work / "models/litgpt", work / "data/tokens", work / "data/clean", {"download": {}, "tokenize": {}},
    )  # fmt: skip
    assert set(figures) == {"val", "routing", "samples"}
    assert "held_out_overlap" not in details["samples"]


def test_with_a_tokenizer_that_loses_text_there_are_no_bits_per_byte(
    work: Path, parameters: Params, tmp_path: Path
) -> None:
    """By the report as the tokenize stage writes it."""
    lower = tokenizers.Tokenizer.from_file(str(work / "data/tokenizer/tokenizer.json"))
    lower.normalizer = tokenizers.normalizers.Lowercase()
    lower.save(str(tmp_path / "tokenizer.json"))
    lossy = parameters.tokenizer.model_copy(
        update={"kind": "pretrained", "vocab_size": None, "path": str(tmp_path / "tokenizer.json")}
    )
    report = {"tokenizer": build_tokenizer(lossy, work / "data/clean", tmp_path / "out")}
    off = {"memorisation_bytes": 0, "temperatures": [0.0]}
    figures, _ = evaluate.evaluate(
        parameters.model_copy(update={"evaluate": parameters.evaluate.model_copy(update=off)}),
        work / "models/litgpt", work / "data/tokens", work / "data/clean", REPORTS | {"tokenize": report},
    )  # fmt: skip
    assert "the tokenizer loses text" in figures["not_comparable"]
    assert {"loss", "perplexity"} <= set(figures["val"])
    assert "bits_per_byte" not in figures["val"] | figures["train_sample"]
    assert not {"baselines", "generator"} & set(figures)


def test_the_sample_of_train_is_whole_documents_spread_over_it(work: Path) -> None:
    from pipeline.tokens import tokenizer

    folder = work / "data/tokens/train"
    part = token_set.sample(folder, tokenizer.load(work / "data/tokenizer"), 3000)
    everything = token_set.whole(folder, work / "data/clean/train")
    assert 2000 < len(part.tokens_N) < 4000
    assert all(text in everything.texts for text in part.texts)
    assert everything.texts.index(part.texts[0]) == 0
    assert everything.texts.index(part.texts[-1]) > 0.8 * len(everything.texts)
    ends = part.tokens_N[part.starts_D[1:] - 1]
    assert len(np.unique(ends)) == 1  # each ends in the EOS token


def test_a_sampled_text_has_its_special_tokens_too(work: Path) -> None:
    from pipeline.tokens import tokenizer

    folder, words = work / "data/tokens/train", tokenizer.load(work / "data/tokenizer")
    plain = token_set.sample(folder, words, 3000).texts
    assert words.token_to_id("Ġthe") in words.encode(plain[0]).ids
    words.add_special_tokens(["Ġthe"])  # as a pretrained vocabulary may call an ordinary word special
    assert token_set.sample(folder, words, 3000).texts == plain


def test_the_beginning_is_as_many_documents_as_fit(work: Path) -> None:
    folder, clean = work / "data/tokens/train", work / "data/clean/train"
    everything = token_set.whole(folder, clean)
    limit = int(everything.bytes_D[:7].sum())
    for bound, documents in ((limit, 7), (limit - 1, 6), (1, 1), (10**9, len(everything.texts))):
        part = token_set.beginning(folder, clean, bound)
        assert len(part.texts) == documents
        np.testing.assert_array_equal(part.tokens_N, everything.tokens_N[: len(part.tokens_N)])
        assert len(part.document_N) == len(part.tokens_N)


def test_texts_and_tokens_of_different_documents_are_refused(work: Path) -> None:
    with pytest.raises(UserError, match=r"30 documents.*170"):
        token_set.whole(work / "data/tokens/train", work / "data/clean/val")


def test_several_devices_need_cuda(work: Path, parameters: Params) -> None:
    config = parameters.evaluate.model_copy(update={"devices": 2})
    with pytest.raises(UserError, match=r"evaluate\.devices: 2 on cpu"):
        evaluate._devices(config)


def run_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return CliRunner().invoke(app)


def test_the_stage_writes_its_reports(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_stage(work, monkeypatch)
    assert done.exit_code == 0, done.output
    figures = json.loads((work / "reports/evaluate.json").read_text(encoding="utf-8"))
    assert f"{figures['val']['bits_per_byte']:.4f} bits per byte" in done.output
    written = work / "reports/plots/evaluate"
    for name in ("by_position", "by_length", "calibration", "experts", "agreement"):
        assert (written / f"{name}.png").stat().st_size > 5000
        assert (written / f"{name}.csv").read_text(encoding="utf-8").count("\n") >= 2
    assert json.loads((written / "details.json").read_text(encoding="utf-8"))["figures"] == figures
    assert f"{figures['val']['bits_per_byte']:.3f}" in (work / "reports/report.html").read_text(encoding="utf-8")


def test_evaluating_again_gives_the_same_bytes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("evaluate.json", "plots/evaluate/details.json", "plots/evaluate/by_position.csv")
    found = []
    for _ in range(2):
        assert run_stage(work, monkeypatch).exit_code == 0
        found.append([(work / "reports" / name).read_bytes() for name in names])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("", "evaluate.prompts.1 = ''"), ("the dog " * 90, "the model's context is 64")],
)
def test_the_stage_refuses_a_prompt_that_cannot_be_continued_before_it_scores(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, words: str
) -> None:
    monkeypatch.setattr(evaluate, "score", lambda *_: pytest.fail("val was scored before the prompts were looked at"))
    wanted = yaml.safe_load((work / "params.yaml").read_text(encoding="utf-8"))
    wanted["evaluate"]["prompts"] = ["Once upon a time", prompt]
    for name in ("data", "models"):
        (tmp_path / name).symlink_to(work / name)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(wanted), encoding="utf-8")
    done = run_stage(tmp_path, monkeypatch)
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert words in " ".join(done.output.split())
    assert not (tmp_path / "reports").exists()
