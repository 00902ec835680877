"""Parameters: what is composed, what is refused, and in which words."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import params
from pipeline.cli.compose import compose
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]


def composed(tmp_path: Path, *overrides: str) -> dict:
    compose(tmp_path / "params.yaml", ROOT / "configs", list(overrides))
    return yaml.safe_load((tmp_path / "params.yaml").read_text(encoding="utf-8"))


def test_the_committed_file_is_what_the_configs_compose(tmp_path):
    compose(tmp_path / "params.yaml", ROOT / "configs")
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("overrides", "section", "watch"),
    [
        (["download=local", "download.path='tests/download/*/[ab]*.txt'"], "download", "tests/download"),
        (["download=local", "download.path=tests/conftest.py"], "download", "tests/conftest.py"),
        (["download=local", "download.path=absent.txt"], "download", "configs/download/local.yaml"),
        (["clean.decontaminate=[]"], "clean", "configs/clean/default.yaml"),
        (["clean.decontaminate=[tests/conftest.py]"], "clean", "tests/conftest.py"),
        (["clean.decontaminate=[tests/conftest.py,tests/download/serving.py]"], "clean", "tests"),
        (["tokenizer=pretrained", "tokenizer.path=LICENSE"], "tokenizer", "LICENSE"),
        (["tokenizer=pretrained", "tokenizer.path=owner/name"], "tokenizer", "configs/tokenizer/pretrained.yaml"),
        (["tokenizer=gpt2"], "tokenizer", "configs/tokenizer/gpt2.yaml"),
    ],
)
def test_what_dvc_watches_follows_from_the_paths(overrides, section, watch, tmp_path):
    assert composed(tmp_path, *overrides)[section]["watch"] == watch


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, path.stem)
        for group in params.Params.model_fields
        for path in sorted((ROOT / "configs" / group).iterdir())
    ],
)
def test_every_preset_is_valid_or_says_what_it_needs(group, name, tmp_path):
    needs = {
        ("download", "huggingface"): "repo: name the data set",
        ("download", "url"): "urls: give at least one",
        ("download", "wandb"): "artifact: name it",
    }
    needs |= {("instruct", preset): words for (_, preset), words in needs.items()}
    raw = composed(tmp_path, f"{group}={name}", *(["model=moe_200m"] if name == "gpt2" else []))
    if (group, name) in needs:
        with pytest.raises(UserError, match=needs[group, name]):
            params.validate(raw)
    else:
        params.validate(raw)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+model.n_experts=4"], "model.n_experts = 4: no such parameter; did you mean model.n_expert?"),
        (["+trian.x=1"], "did you mean train?"),
        (["+train.optimizer.learning_rate=1"], "train.optimizer.learning_rate = 1: no such parameter; known: name, lr"),
        (["model.n_expert=one"], "model.n_expert = 'one': input should be a valid integer"),
        (["model.n_expert=1"], "model.n_expert_per_token: 2; allowed: 1 to n_expert = 1"),
        (["model.n_head=3"], "model.n_query_groups = 2: must divide n_head = 3; allowed: 1, 3"),
        (["model.n_head=6"], "model.n_head: 6 does not divide n_embd = 128; allowed: 1, 2, 4, 8"),
        (["train.block_size=2048"], "train.block_size: 2048 is more than the model's context; allowed: 1 to"),
        (["train.device=cpu", "train.precision=16-mixed"], "train.precision: 16-mixed needs a GPU"),
        (
            ["train.device=cuda", "train.strategy=fsdp", "train.optimizer.name=adamw8bit"],
            "train.strategy: fsdp cuts the blocks that adamw8bit scales",
        ),
        (["train.global_batch_size=17"], "train.global_batch_size: 17 is no multiple"),
        (["instruct=local", "+instruct.pth=x"], "instruct.pth = 'x': no such parameter; did you mean instruct.path?"),
        (["instruct.conversations=0"], "instruct.conversations = 0: input should be greater than or equal to 1"),
        (["finetune.max_steps=null"], "finetune.max_epochs: one of max_epochs and max_steps must be set"),
        (["finetune.targets=[wte]"], "allowed: 'attention', 'mlp', 'experts'"),
        (["download.source=locla"], "download.source = 'locla'; allowed: 'bundled'"),
        (["download=local", "download.watch='books/*.txt'"], "download.watch: 'books/*.txt' is a glob"),
        (["train.optimizer.name=adam"], "did you mean adamw?"),
        (["model.vocab_size=300"], "model.vocab_size: 300 is less than tokenizer.vocab_size"),
        (["tokenizer.vocab_size=100"], "tokenizer.vocab_size: 100 is too small"),
        (["evaluate.lm_eval_tasks=[tests/conftest.py]"], "-S evaluate.watch=tests"),
        (["evaluate.lm_eval_tasks=[tests/conftest.py]", "evaluate.watch=tes"], "tes does not hold tests/conftest.py"),
        (["evaluate.prompts=[Once,'']"], "evaluate.prompts.1 = ''"),
        (["train.micro_batch_size=most"], "train.micro_batch_size = 'most'; allowed: 'auto'"),
        (["train.micro_batch_size=0"], "train.micro_batch_size = 0: input should be greater than or equal to 1"),
        (["evaluate.stride=2000"], "evaluate.stride: 2000; allowed: 1 to train.block_size"),
    ],
)
def test_an_impossible_parameter_is_named_with_its_value_and_what_is_allowed(overrides, words, tmp_path):
    with pytest.raises(UserError) as error:
        params.validate(composed(tmp_path, *overrides))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.n_layer", 4 * 10**15),
        ("model.n_head", 10**18),
        ("model.n_expert", 10**10),
        ("model.n_embd", 10**30),
        ("model.block_size", 2**70),
        ("model.rope_base", 10**40),
        ("train.optimizer.lr", float("inf")),
        ("train.optimizer.eps", float("nan")),
        ("train.max_epochs", float("inf")),
        ("train.schedule.warmup", 1e300),
        ("train.micro_batch_size", 10**12),
        ("train.seed", 2**64),
    ],
)
def test_what_no_machine_could_do_is_refused_at_once(key, value, tmp_path):
    raw = composed(tmp_path)
    *path, last = key.split(".")
    section = raw
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(UserError, match=re.escape(f"{key} = {value!r}: ")):
        params.validate(raw)


def test_on_and_off_without_quotes_are_words_not_truth_values(tmp_path):
    raw = composed(tmp_path)
    for word in ("on", "off"):
        raw["train"]["compile"] = yaml.safe_load(word)
        assert params.validate(raw).train.compile == word
    raw["train"]["routing_gate"]["action"] = yaml.safe_load("off")
    assert params.validate(raw).train.routing_gate.action == "off"


def test_every_key_must_be_there(tmp_path):
    raw = composed(tmp_path)
    del raw["train"]["seed"]
    with pytest.raises(UserError, match=r"train\.seed: missing"):
        params.validate(raw)


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(UserError) as error:
        params.validate(composed(tmp_path, "+model.n_experts=4", "train.seed=x"))
    assert "model.n_experts" in str(error.value)
    assert "train.seed" in str(error.value)


@pytest.mark.parametrize("stage", ["download", "clean", "tokenize", "train", "evaluate", "export"])
def test_every_stage_refuses_a_typo_in_any_section_with_exit_code_2_and_writes_nothing(stage, tmp_path):
    raw = composed(tmp_path)
    raw["export"]["dtpye"] = "float32"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "export.dtpye = 'float32': no such parameter; did you mean export.dtype?" in run.stderr
    assert "Traceback" not in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("stage", ["download", "clean", "tokenize", "train", "evaluate", "export"])
def test_help_needs_no_heavy_import(stage):
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('stages.{stage}', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "heavy = {'torch', 'transformers', 'daft', 'wandb', 'litgpt', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Usage" in run.stdout


@pytest.mark.parametrize("path", ["故事.txt", "story(1).txt", "~/s.txt"])
def test_a_name_that_hydra_cannot_read_needs_quotes_and_the_message_shows_them(path, tmp_path):
    with pytest.raises(UserError, match="needs quotes within quotes: 'KEY=\"VALUE\"'"):
        composed(tmp_path, "download=local", f"download.path={path}")
    assert composed(tmp_path, "download=local", f'download.path="{path}"')["download"]["path"] == path


def test_a_name_like_a_number_is_a_name(tmp_path):
    raw = composed(tmp_path, "download=local", "download.path=2024")
    assert params.validate(raw).download.path == "2024"
