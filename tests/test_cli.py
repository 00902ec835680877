"""The `moe` command at a terminal: what it prints, what it refuses, exit codes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline import params
from pipeline.cli import app
from pipeline.corpus import tokenizer
from pipeline.corpus.storyteller import stories
from pipeline.evaluation.generation import Generator
from pipeline.evaluation.sampling import Sampling
from pipeline.model import build, checkpoint_folder
from tests.wandb_server import ENTITY, WandbServer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with a tokenizer of the bundled stories."""
    folder = tmp_path_factory.mktemp("cli")
    parameters = params.load(ROOT / "params.yaml")
    (folder / "clean/train").mkdir(parents=True)
    table = pa.table({"text": [story.text for story in stories(60, seed=3)]})
    pq.write_table(table, folder / "clean/train/part-00000.parquet")
    tokenizer.build(parameters.tokenizer.model_copy(update={"vocab_size": 400}), folder / "clean", folder / "tokenizer")
    small = {"n_layer": 2, "n_embd": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "block_size": 64}
    model = build.build(parameters.model.model_copy(update=small), tokenizer.vocab_size(folder / "tokenizer"))
    checkpoint_folder.save(model, folder / "litgpt", folder / "tokenizer")
    return folder / "litgpt"


def moe(*arguments: object, typed: str | bytes | None = None) -> tuple[int, str, str]:
    """Exit code, standard output, standard error with its lines joined."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


# --- generate ---------------------------------------------------------------------------------------------------------


def test_generate_prints_the_prompt_its_continuation_and_a_remark(checkpoint: Path) -> None:
    code, out, err = moe("generate", "--checkpoint", checkpoint, "--prompt", "Once upon a time", "--device", "cpu")
    expected = Generator.open(checkpoint).generate(["Once upon a time"], Sampling(max_new_tokens=256))[0]
    assert (code, out) == (0, f"Once upon a time{expected.text}\n")
    assert err.startswith(f"[{expected.n_tokens} tokens, ") and "the context of 64 tokens is full" in err


def test_generate_takes_a_file_of_prompts_and_prints_json(checkpoint: Path, tmp_path: Path) -> None:
    prompts = ["Once upon a time", "The dog", "你好"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    options = ("--temperature", 0, "--max-new-tokens", 7, "--stop", "zzz", "--device", "cpu", "--json")
    code, out, _ = moe("generate", "--checkpoint", checkpoint, "--prompts-file", tmp_path / "prompts.txt", *options)
    found = [json.loads(line) for line in out.splitlines()]
    expected = Generator.open(checkpoint).generate(prompts, Sampling(temperature=0, max_new_tokens=7))
    assert code == 0
    assert found == [vars(completion) for completion in expected]


def test_several_prompts_are_printed_with_a_blank_line_between(checkpoint: Path) -> None:
    options = ("--max-new-tokens", 3, "--temperature", 0, "--device", "cpu")
    code, out, err = moe("generate", "--checkpoint", checkpoint, "--prompt", "The dog", "--prompt", "A cat", *options)
    first, second = Generator.open(checkpoint).generate(["The dog", "A cat"], Sampling(temperature=0, max_new_tokens=3))
    assert (code, out) == (0, f"The dog{first.text}\n\nA cat{second.text}\n")
    assert err.startswith("[6 tokens, ")


def test_generate_takes_a_wandb_artifact(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    options = ("--prompt", "The dog", "--max-new-tokens", 5, "--device", "cpu", "--json")
    with WandbServer() as server:
        for name, value in (server.environment | {"WANDB_MODE": "online"}).items():
            monkeypatch.setenv(name, value)
        for place in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            monkeypatch.setenv(place, str(tmp_path))
        with wandb.init(project="stories", dir=tmp_path) as run:
            artifact = wandb.Artifact("model", "model")
            artifact.add_dir(str(checkpoint))
            run.log_artifact(artifact).wait()
        found = moe("generate", "--checkpoint", f"{ENTITY}/stories/model:latest", *options)
        absent = moe("generate", "--checkpoint", f"{ENTITY}/stories/nothing:v3", *options)
        wandb.teardown()
    assert found[:2] == moe("generate", "--checkpoint", checkpoint, *options)[:2]
    assert found[0] == 0 and absent[0] == 2 and "nothing:v3" in absent[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --prompt"),
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "word " * 90], "context is 64"),
        (["--prompt", "x", "--top-p", "3"], "top_p = 3.0; allowed"),
        (["--prompt", "x", "--temperature", "-1"], "temperature = -1.0; allowed"),
        (["--prompt", "x", "--device", "abacus"], "--device abacus"),
        (["--prompts-file", "absent.txt"], "absent.txt: no such file"),
        (["--prompt", "x", "--checkpoint", "absent"], "absent is no folder"),
        (["--prompt", "x", "--checkpoint", "tests"], "holds no model"),
    ],
)
def test_generate_refuses_in_words_with_exit_code_2(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = moe("generate", "--checkpoint", checkpoint, *arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(
    ("content", "words"), [(b"one\n\nthree\n", "line 2 is empty"), (b"", "line 1 is empty"), (b"\xff\xfe", "no UTF-8")]
)
def test_a_file_of_prompts_must_hold_a_prompt_a_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    code, _, err = moe("generate", "--prompts-file", tmp_path / "prompts.txt")
    assert code == 2 and words in err


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_answers_each_line_of_a_pipe(checkpoint: Path) -> None:
    options = ("--temperature", 0, "--max-new-tokens", 5, "--device", "cpu")
    code, out, err = moe("chat", "--checkpoint", checkpoint, *options, typed="The dog\n/reset\nThe dog\n/quit\nno\n")
    answer = Generator.open(checkpoint).generate(["The dog"], Sampling(temperature=0, max_new_tokens=5))[0].text
    assert (code, out) == (0, f"{answer}\n{answer}\n")
    assert "[all forgotten]" in err


def test_chat_says_what_it_forgets_and_ends_with_its_input(checkpoint: Path) -> None:
    options = ("--max-new-tokens", 20, "--device", "cpu")
    code, out, err = moe("chat", "--checkpoint", checkpoint, *options, typed="the dog and the cat went home and\n" * 5)
    assert code == 0 and len(out.splitlines()) >= 5
    assert "context of 64 tokens is full" in err and "forgotten" in err


def test_chat_from_a_pipe_stops_at_a_line_it_cannot_take(checkpoint: Path) -> None:
    code, _, err = moe("chat", "--checkpoint", checkpoint, "--device", "cpu", typed="\n")
    assert code == 2 and "prompt is empty" in err
