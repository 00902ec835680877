"""The `moe` command at a terminal: what it prints, what it refuses, exit codes."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from pipeline import hashing, params
from pipeline.cli import terminal
from pipeline.cli.app import app
from pipeline.cli.compose import compose
from pipeline.cli.terminal import opened
from pipeline.generate.generation import Generator
from pipeline.generate.sampling import Sampling
from pipeline.huggingface import folder as huggingface
from pipeline.huggingface.verify import _randomize
from pipeline.model import build, checkpoint_folder
from pipeline.storyteller.stories import stories
from pipeline.tokenize import tokenizer
from pipeline.tokenize import writer as tokens
from pipeline.tokens.tokenizer import vocab_size
from pipeline.train import loop
from tests.tracking.wandb_server import ENTITY, WandbServer

ROOT = Path(__file__).parents[2]


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
    model = build.build(parameters.model.model_copy(update=small), vocab_size(folder / "tokenizer"))
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
    prompts = ["Once upon a time", "The dog", "你好", "A\u2028cat\x85 sat"]
    (tmp_path / "prompts.txt").write_text("\r\n".join(prompts) + "\n", encoding="utf-8-sig", newline="")
    options = ("--temperature", 0, "--max-new-tokens", 7, "--stop", "zzz", "--device", "cpu", "--json")
    code, out, _ = moe("generate", "--checkpoint", checkpoint, "--prompts-file", tmp_path / "prompts.txt", *options)
    found = [json.loads(line) for line in out.splitlines()]  # which splits at U+2028 too
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
        (["--prompt", "x", "--device", "abacus"], "--device: torch finds no 'abacus'"),
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_prompts_come_from_any_file_that_says_its_encoding(tmp_path: Path, encoding: str, end: str) -> None:
    prompts = ["Once upon", "A\u2028cat\x85 \x0bsat", "你好 é"]
    (tmp_path / "prompts.txt").write_bytes((end.join(prompts) + end).encode(encoding))
    assert terminal.read_prompts(tmp_path / "prompts.txt") == prompts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"one\n\nthree\n", "line 2 is empty"),
        (b"", "line 1 is empty"),
        ("Une soirée à la forêt\n".encode("cp1252"), "not UTF-8"),
        ("Once upon\n".encode("utf-16-le"), "a NUL"),
    ],
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
    assert "[started anew]" in err


def test_chat_says_what_it_forgets_and_ends_with_its_input(checkpoint: Path) -> None:
    options = ("--max-new-tokens", 20, "--device", "cpu")
    code, out, err = moe("chat", "--checkpoint", checkpoint, *options, typed="the dog and the cat went home and\n" * 5)
    assert code == 0 and len(out.splitlines()) >= 5
    assert "context of 64 tokens is full" in err and "forgotten" in err


def test_chat_from_a_pipe_stops_at_a_line_it_cannot_take(checkpoint: Path) -> None:
    code, _, err = moe("chat", "--checkpoint", checkpoint, "--device", "cpu", typed="\n")
    assert code == 2 and "prompt is empty" in err


# --- import, push -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a model with everything that is not the default: stretched rope, shared experts."""
    folder = tmp_path_factory.mktemp("exported") / "hf"
    stretched = params.RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_block_size=32)
    other = {"norm_qk": False, "n_shared_expert": 1, "norm_eps": 1e-6, "rope_scaling": stretched, "moe_every": 2}
    model = build.build(checkpoint_folder.load(checkpoint).params.model_copy(update=other), 400)
    _randomize(model)
    huggingface.to_huggingface(model, checkpoint, folder, "float32", 10**9)
    (folder / "README.md").write_text("# stories\n", encoding="utf-8")
    return folder


def test_training_goes_on_from_an_imported_model_with_just_what_import_prints(
    exported: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = moe("import", exported, "--into", tmp_path / "imported")
    assert (code, err) == (0, "")
    command = shlex.split(out.strip().splitlines()[-1].partition("continue with: ")[2])
    assert command[:4] == ["uv", "run", "dvc", "exp"] and set(command[5::2]) == {"-S"}
    from_scratch = params.load(ROOT / "params.yaml").train.optimizer
    assert f"train.optimizer.lr={from_scratch.lr / 10:g}" in command
    short = ["train.device=cpu", "train.compile=off", "train.max_tokens=256", "train.optimizer.lr=1e-12"]
    short += ["train.optimizer.weight_decay=0", "train.schedule.min_lr_fraction=0"]
    compose(tmp_path / "params.yaml", ROOT / "configs", [*command[6::2], *short])
    wanted = params.load(tmp_path / "params.yaml")

    (tmp_path / "clean/val").mkdir(parents=True)
    (tmp_path / "clean/train").symlink_to(checkpoint.parent / "clean/train")
    val = pa.table({"text": [story.text for story in stories(5, seed=9)]})
    pq.write_table(val, tmp_path / "clean/val/part-00000.parquet")
    tokenizer.build(wanted.tokenizer, tmp_path / "clean", tmp_path / "tokenizer")
    tokens.write(wanted.tokenizer, tmp_path / "tokenizer", tmp_path / "clean", tmp_path / "tokens")
    report = loop.train(
        wanted, tmp_path / "tokens", tmp_path / "tokenizer", tmp_path / "litgpt",
        runs=tmp_path / "runs", live=tmp_path / "live", plots=None,
    )  # fmt: skip
    assert report["steps"] == 2
    before, after = (checkpoint_folder.load(tmp_path / name) for name in ("imported", "litgpt"))
    for name, weight in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], weight, rtol=0, atol=1e-6)
    hello = Sampling(temperature=0, max_new_tokens=9)
    with opened(str(exported), "cpu") as original:
        expected = original.generate(["The dog"], hello)
    assert Generator.open(tmp_path / "litgpt").generate(["The dog"], hello) == expected


def test_import_says_that_a_tokenizer_is_missing(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / name).symlink_to(exported / name)
    code, out, err = moe("import", tmp_path / "hf", "--into", tmp_path / "imported")
    assert code == 0 and "tokenizer" not in out and "has no tokenizer; name the model's own" in err


@pytest.mark.parametrize(
    ("folder", "into", "words"),
    [
        ("absent", "new", "absent: no config.json there"),
        ("hf", "work", "work is there already and is no litgpt checkpoint folder"),
        ("hf", "work/letter.txt", "letter.txt is there already"),
        ("hf", ".", ". cannot be written as a checkpoint folder"),
    ],
)
def test_import_refuses_in_words_with_exit_code_2(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, into: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("work").mkdir()
    Path("work/letter.txt").write_text("dear", encoding="utf-8")
    code, out, err = moe("import", exported if folder == "hf" else folder, "--into", into)
    assert (code, out) == (2, "")
    assert words in err and Path("work/letter.txt").read_text(encoding="utf-8") == "dear"


def test_a_flipped_bit_in_an_exported_model_is_noticed(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "hf")
    weights = folder / "model.safetensors"
    card = f"| `model.safetensors` | 1,024 | `{hashing.file_sha256(weights)}` |"
    (folder / "README.md").write_text(f"# stories\n\n{card}\n", encoding="utf-8")
    commands = (
        ("generate", "--checkpoint", folder, "--prompt", "The dog", "--max-new-tokens", 2, "--device", "cpu"),
        ("import", folder, "--into", tmp_path / "imported"),
        ("push", "me/stories", "--folder", folder, "--dry-run"),
    )
    assert [moe(*command)[0] for command in commands] == [0, 0, 0]
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    for command in commands:
        code, out, err = moe(*command)
        assert (code, out) == (2, "") and "model.safetensors is not the file whose SHA-256" in err


def test_push_says_what_would_go_and_sends_nothing(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, out, err = moe("push", "me/stories", "--folder", exported, "--dry-run")
    assert (code, err) == (0, "")
    *files, last = out.splitlines()
    assert [line.split()[0] for line in files] == sorted(path.name for path in exported.iterdir())
    assert "README.md (10 B)" in out
    assert last.startswith(f"push: would send {len(files)} files, ") and last.endswith(" to me/stories")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stories"], "it looks like owner/name"),
        (["me/stories", "--folder", "absent"], "absent has no config.json"),
        (["me/stories"], "log in with `hf auth login`"),
    ],
)
def test_push_refuses_in_words_with_exit_code_2(
    exported: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, out, err = moe("push", "--folder", exported, *arguments)
    assert (code, out) == (2, "")
    assert words in err


# --- anywhere, interrupted, the machine -------------------------------------------------------------------------------

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


def test_help_of_every_command_needs_no_project_and_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from pipeline.cli.app import app\n"
        "for command in sys.argv[1:]:\n"
        "    result = CliRunner().invoke(app, [command, '--help'])\n"
        "    assert result.exit_code == 0 and 'Usage' in result.stdout, (command, result.output)\n"
        "heavy = {'torch', 'litgpt', 'transformers', 'wandb', 'dvc', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    command = [sys.executable, "-c", program, *COMMANDS]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["mirror"], "no dvc.yaml in "),
        (["fetch", "model:best"], "no dvc.yaml in "),
        (["compose"], "no configs/config.yaml in "),
        (["compose", "--check"], "no configs/config.yaml in "),
        (["plan"], "params.yaml is not here"),
    ],
)
def test_what_needs_the_project_says_so_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], missing: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = moe(*command)
    assert (code, out) == (2, "") and missing in err and "project's folder" in err


@pytest.mark.parametrize("imported", ["typer", "torch", "json"])
def test_ctrl_c_while_modules_are_imported_is_a_word_and_130(tmp_path: Path, imported: str) -> None:
    program = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {imported!r}: raise KeyboardInterrupt\n"
        "sys.modules.pop('json', None); sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['moe', 'generate', '--prompt', 'x']\n"
        "from pipeline.cli.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("interrupted\n") and "Traceback" not in done.stderr


def test_a_reader_that_goes_away_ends_the_command_quietly(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "generate", "--checkpoint", str(checkpoint), "--device", "cpu"]
    command += ["--prompt", "One", "--prompt", "Two", "--max-new-tokens", "5"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    said = running.stderr.read()
    assert running.wait() == 1 and "Traceback" not in said and "Exception" not in said


def test_compose_check_names_what_dvc_exp_run_would_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    assert moe("compose")[0] == 0
    assert moe("compose", "--check")[:2] == (0, "params.yaml is what configs/ compose\n")
    written = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(written.replace("n_layer: 4", "n_layer: 5"), encoding="utf-8")
    code, out, err = moe("compose", "--check")
    assert (code, out) == (1, "params.yaml: model.n_layer = 5, configs/ say 4\n") and "dvc exp run" in err
    assert "n_layer: 5" in Path("params.yaml").read_text(encoding="utf-8")
    assert moe("compose", "--check", "model.n_layer=5")[0] == 0
