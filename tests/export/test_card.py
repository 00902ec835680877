"""The model card: front matter that the Hub reads, and words that hold what the reports say."""

import ast
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from pipeline import hashing, params
from pipeline.errors import UserError
from pipeline.export import card
from pipeline.export import reports as export_reports
from tests.model.small import ROOT

FACTS = {
    "class": "MixtralForCausalLM",
    "dtype": "bfloat16",
    "vocab_size": 4096,
    "parameters": 1_234_567,
    "active_parameters": 654_321,
    "max_logit_difference": 2e-6,
    "positions_equal": 1000,
    "near_ties": 0,
    "greedy_tokens": 128,
    "greedy_tokens_equal": 128,
}
STORIES = [
    {"prompt": "Once", "temperature": 0.0, "text": " dull"},
    {"prompt": "Once", "temperature": 0.7, "text": " upon a time.\n\nThe end."},
    {"prompt": "Once", "temperature": 0.7, "text": " again"},
    {"prompt": "One day", "temperature": 1.0, "text": " wild"},
]


def parameters(**changes: Any) -> params.Params:
    whole = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return params.validate(whole | changes)


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    folder = tmp_path / "reports"
    (folder / "plots/evaluate").mkdir(parents=True)
    val = {"loss": 1.5, "perplexity": 4.4817, "bits_per_byte": 0.54321, "accuracy": 0.61}
    (folder / "evaluate.json").write_text(json.dumps({"val": val}))
    (folder / "train.json").write_text(json.dumps({"tokens": 1_000_000}))
    (folder / "download.json").write_text(json.dumps({"card": "Data: tales of the author; 21,000 documents, 9.0 MB."}))
    (folder / "plots/evaluate/details.json").write_text(json.dumps({"samples": {"stories": STORIES}}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "hf"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "config.json").write_text("{}")
    return made


def write(parameters: params.Params, reports: Path, folder: Path, facts: dict[str, Any]) -> None:
    card.write(parameters, export_reports.read(reports), folder, facts)


def test_the_hub_reads_licence_library_tags_and_figures(reports: Path, folder: Path) -> None:
    write(parameters(), reports, folder, FACTS)
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    assert "mixture-of-experts" in data.tags
    assert {r.metric_type: r.metric_value for r in data.eval_results} == {
        "loss": 1.5,
        "perplexity": 4.4817,
        "bits_per_byte": 0.5432,
    }


def test_the_data_are_named_as_their_source_says(reports: Path, folder: Path) -> None:
    sentence = "Data: [owner/tales](https://huggingface.co/datasets/owner/tales) at abc123, licence cdla-sharing-1.0."
    said = {"card": sentence, "dataset": "owner/tales", "description": "owner/tales", "documents": 5, "more": [1]}
    (reports / "download.json").write_text(json.dumps(said))
    write(parameters(), reports, folder, FACTS)
    front = ModelCard.load(folder / "README.md").data
    assert front.datasets == ["owner/tales"] and front.eval_results[0].dataset_type == "owner/tales"
    assert sentence in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.json", b"{", "train.json is damaged"),
        ("train.json", b"[" * 100_000, "train.json is damaged"),
        ("train.json", b"\xff\xfe{}", "train.json is damaged"),
        ("train.json", b'{"tokens": "many"}', "train.json is damaged .tokens: "),
        ("evaluate.json", b"[]", "evaluate.json is damaged"),
        ("evaluate.json", b'{"val": {"loss": "low"}}', "evaluate.json is damaged .val.loss: "),
        ("download.json", b'{"card": 3}', "download.json is damaged .card: .*dvc repro -f download"),
        ("plots/evaluate/details.json", b'{"samples": {"stories": [{}]}}', "details.json .* dvc repro -f evaluate"),
    ],
)
def test_a_damaged_report_is_named(name: str, content: bytes, words: str, reports: Path) -> None:
    (reports / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        export_reports.read(reports)


def test_prompts_are_in_the_language_of_the_corpus_and_can_be_pasted(reports: Path, folder: Path) -> None:
    told = [{"prompt": "从前，\n有一只“小猫”叫 'Tom'$HOME\"", "temperature": 0.7, "text": "。"}]
    (reports / "plots/evaluate/details.json").write_text(json.dumps({"samples": {"stories": told}}))
    (folder / "stories-q8_0.gguf").write_bytes(b"GGUF")
    write(parameters(), reports, folder, FACTS)
    text = (folder / "README.md").read_text(encoding="utf-8")
    line = next(line for line in text.split("\n") if line.startswith("prompt = "))
    assert ast.parse(line).body[0].value.args[0].value == "从前， 有一只“小猫”叫 'Tom'$HOME\""
    command = next(line for line in text.split("\n") if "llama-cli" in line).split("`")[3]
    assert shlex.split(command)[-1] == "从前， 有一只“小猫”叫 'Tom'$HOME\""


def test_the_text_tells_figures_samples_parameters_and_hashes(reports: Path, folder: Path) -> None:
    (folder / "stories-q8_0.gguf").write_bytes(b"GGUF")
    write(parameters(), reports, folder, FACTS)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "1,234,567 parameters, 654,321 of them active for each token" in text
    assert "| bits per byte (validation) | 0.5432 |" in text
    assert "| trained on | 1,000,000 tokens |" in text
    assert "> Once upon a time.\n>\n> The end." in text and "> Once again" not in text and "dull" not in text
    assert "llama-cli -m stories-q8_0.gguf" in text
    assert "uv run dvc repro" in text and "21,000 documents, 9.0 MB" in text
    for name in ("model.safetensors", "config.json", "stories-q8_0.gguf"):
        assert hashing.file_sha256(folder / name) in text
    shown = text.split("```yaml\n")[1].split("```")[0]
    assert params.validate(yaml.safe_load(shown)) == parameters()  # a run can be repeated from the card alone


def test_what_is_equal_in_part_does_not_read_as_whole(tmp_path: Path, folder: Path) -> None:
    write(parameters(), tmp_path / "none", folder, FACTS)
    whole = (folder / "README.md").read_text(encoding="utf-8")
    assert "at 1000 positions" in whole and "(128 of 128)" in whole and "rounding" not in whole
    write(parameters(), tmp_path / "none", folder, FACTS | {"near_ties": 24, "greedy_tokens_equal": 100})
    part = (folder / "README.md").read_text(encoding="utf-8")
    assert "(100 of 128)" in part
    assert "At the rest (24 positions, 28 tokens) rounding decided" in part


def test_reports_that_are_not_there_are_left_out(tmp_path: Path, folder: Path) -> None:
    write(parameters(), tmp_path / "none", folder, FACTS | {"active_parameters": FACTS["parameters"]})
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "Samples" not in text and "validation" not in text and "active for each" not in text
    assert ModelCard.load(folder / "README.md").data.eval_results is None


def test_the_same_inputs_give_the_same_card(reports: Path, folder: Path) -> None:
    write(parameters(), reports, folder, FACTS)
    first = (folder / "README.md").read_bytes()
    write(parameters(), reports, folder, FACTS)
    assert (folder / "README.md").read_bytes() == first


def test_a_file_that_is_not_the_one_that_the_card_lists_is_refused(reports: Path, folder: Path) -> None:
    write(parameters(), reports, folder, FACTS)
    card.refuse_damage(folder)
    (folder / "config.json").write_text("[]")
    card.refuse_damage(folder, "*.safetensors")
    with pytest.raises(UserError, match=r"config\.json is not the file whose SHA-256 .*README\.md lists"):
        card.refuse_damage(folder)
