"""The whole DAG, run by DVC on a tiny configuration in a clone of its own: what runs, what not, what comes out."""

import base64
import contextlib
import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import BaseModel

from pipeline import params
from pipeline.clean import cleaning
from pipeline.cli.compose import compose
from pipeline.download import sources
from pipeline.hashing import tree_md5
from pipeline.storyteller.stories import stories
from pipeline.tokenize import tokenizer
from pipeline.tokenize import writer as tokens
from tests.isolation import WITHOUT_OUR_CODE
from tests.test_docs import commands
from tests.tracking.wandb_server import WandbServer

ROOT = Path(__file__).parent.parent
STAGES = ["download", "clean", "tokenize", "train", "evaluate", "export"]
FINETUNE = {  # stage of finetune/dvc.yaml → its module
    "finetune/instruct": "instruct",
    "finetune/finetune": "finetune",
    "finetune/evaluate": "evaluate_finetuned",
    "finetune/export": "export_finetuned",
}
MODULES = dict(zip(STAGES, STAGES, strict=True)) | FINETUNE
# precision: two runs are compared byte by byte, and for so small a model `auto` could settle either way.
TINY = """
download: {documents: 300}
tokenizer: {vocab_size: 400, chunk_tokens: 16384}
model: {block_size: 64, n_layer: 2, n_embd: 32, n_head: 2, n_query_groups: 1, intermediate_size: 64, n_expert: 4,
        moe_intermediate_size: 32}
train: {block_size: 64, global_batch_size: 8, micro_batch_size: 4, max_tokens: 8192, device: cpu, compile: "off",
        eval_every: 8, eval_samples: 8, checkpoint_every: 8, precision: 32-true}
evaluate: {batch_size: 8, train_sample_tokens: 512, max_new_tokens: 12, prompts: [Once upon a time], device: cpu,
           temperatures: [0.0, 0.8], baseline_bytes: 20000, memorisation_bytes: 20000}
instruct: {conversations: 300, val_fraction: 0.1}
finetune: {max_steps: 8, eval_every: 4}
"""


# Planted where people have theirs; each is looked for in all that a run writes.
KEYS = {
    name: f"planted-{name.lower()}-b3c1f7"
    for name in (
        "HF_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "MOE_SERVE_TOKEN",
        "MOE_TOKEN_EXAMPLE_ORG",
    )
}


def run(folder: Path, *command: str, check: bool = True, **environment: str) -> str:
    """Run a Python module there, as a user with nothing but this environment's Python; what it printed."""
    settings = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": "",
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # bit-identical results, and two tests at a time do not fight for the cores
        **KEYS,
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=settings, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, output
    return output


def written(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Every file, links followed once, and what is in it; of what is packed also what was packed."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        yield str(path), content
        with contextlib.suppress(zlib.error):
            yield f"{path}, unpacked", zlib.decompressobj(wbits=47).decompress(content)  # zlib (Git) and gzip


def ran(output: str) -> list[str]:
    said = {stage: stage.replace("/", "/dvc.yaml:") for stage in MODULES}
    return [stage for stage, words in said.items() if f"Running stage '{words}'" in output]


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    return new_clone(tmp_path_factory.mktemp("clone") / "project")


def new_clone(folder: Path) -> Path:
    """The project's files as they are now in a repository of their own, set to the tiny configuration."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    config = folder / "configs" / "config.yaml"
    config.write_text(config.read_text("utf-8") + TINY, "utf-8")
    run(folder, "pipeline.cli", "compose")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "Test")
    git(folder, "config", "user.email", "test@example.com")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "tiny")
    return folder


@pytest.fixture(scope="session")
def wandb_server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


def watched(server: WandbServer, home: Path) -> dict[str, str]:
    """The environment of somebody who uses W&B, with a home of their own."""
    places = dict.fromkeys(("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"), str(home))
    return {**server.environment, **places, "WANDB_MODE": "online", "WANDB_ERROR_REPORTING": "false"}


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def repro(clone, wandb_server, home) -> str:
    """What the first `dvc repro` printed; it was watched by W&B."""
    return run(clone, "dvc", "repro", **watched(wandb_server, home))


def metrics(clone: Path, stage: str) -> dict:
    return json.loads((clone / "reports" / f"{stage}.json").read_text(encoding="utf-8"))


@pytest.mark.timeout(600)
def test_one_command_goes_from_raw_text_to_an_exported_model(clone, repro):
    assert ran(repro) == STAGES
    for stage in STAGES:
        assert f"\n{stage}: wrote " in repro, f"{stage} ends with no line that says what it wrote"
    assert "uv run moe generate --prompt " in repro
    assert 0 < metrics(clone, "evaluate")["val"]["bits_per_byte"] < 8


def test_nothing_changed_runs_no_stage_whoever_watches(clone, repro):
    assert ran(run(clone, "dvc", "repro")) == []


def test_wandb_knows_what_each_stage_read_and_wrote(clone, repro, wandb_server):
    assert wandb_server.unknown == []
    jobs = wandb_server.jobs()
    assert set(jobs) == set(STAGES)
    read = {stage: {version.collection for version in job.inputs} for stage, job in jobs.items()}
    wrote = {stage: {version.collection for version in job.outputs} for stage, job in jobs.items()}
    assert read["clean"] == {"raw"}
    assert {"tokens", "tokenizer"} <= read["train"]
    assert "model" in read["export"]
    assert {"raw"} <= wrote["download"]
    assert {"tokens", "tokenizer"} <= wrote["tokenize"]
    assert "model-hf" in wrote["export"]
    lock = yaml.safe_load((clone / "dvc.lock").read_text("utf-8"))["stages"]
    recorded = json.loads(wandb_server.version("model:best").metadata)["dvc_md5"]
    assert recorded["models/litgpt"] == next(o["md5"] for o in lock["train"]["outs"] if o["path"] == "models/litgpt")


def test_mirroring_again_uploads_nothing(clone, repro, wandb_server, tmp_path):
    before = dict(wandb_server.bytes_uploaded)
    run(clone, "pipeline.cli", "mirror", **watched(wandb_server, tmp_path))
    assert dict(wandb_server.bytes_uploaded) == before


def test_keys_of_the_environment_are_in_nothing_that_was_written_or_said(clone, repro, wandb_server, home):
    """Neither in a file of the project, DVC's cache, Git, W&B's folder and home, nor in what W&B's server was told."""
    keys = {*KEYS.values(), wandb_server.environment["WANDB_API_KEY"]}
    keys |= {base64.b64encode(f"api:{key}".encode()).decode() for key in keys}  # as a header has it
    told = [("W&B's runs", repr((wandb_server.runs, wandb_server.versions)).encode())]
    told += [(f"W&B's file {name}", blob) for name, blob in wandb_server.blobs.items()]
    places = [("the output", repro.encode()), *told, *written(clone, home)]
    assert len(places) > 300 and any("wandb/run-" in name for name, _ in places)
    assert [(name, key) for name, content in places for key in keys if key.encode() in content] == []


@pytest.mark.timeout(600)
def test_a_colleague_starts_from_the_artifact_and_gets_the_same_tokens(clone, repro, wandb_server, tmp_path):
    empty = new_clone(tmp_path / "empty")
    config = empty / "configs" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("download: {documents: 300}\n", ""), "utf-8")
    chosen = ["-S", "download=wandb", "-S", "download.artifact=team/stories/clean:latest"]
    run(empty, "dvc", "exp", "run", *chosen, "tokenize", **watched(wandb_server, tmp_path))
    assert tree_md5(empty / "data" / "tokens") == tree_md5(clone / "data" / "tokens")


def test_a_stage_ends_well_though_wandb_dies_in_the_middle(clone, repro, wandb_server, tmp_path):
    shutil.copytree(clone, tmp_path / "copy", ignore=shutil.ignore_patterns(".git", "wandb"))
    wandb_server.fault("drop", after=6)
    impatience = {"WANDB_INIT_TIMEOUT": "5", "WANDB_FINISH_TIMEOUT": "5"}
    output = run(tmp_path / "copy", "stages.download", **watched(wandb_server, tmp_path), **impatience)
    wandb_server.heal()
    assert output.count("warning: ") == 1
    assert "\ndownload: wrote " in output
    assert wandb_server.environment["WANDB_API_KEY"] not in output


def test_the_exported_folder_needs_none_of_our_code(clone, repro, tmp_path):
    code = WITHOUT_OUR_CODE + (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; f = sys.argv[1]\n"
        "m, t = M.from_pretrained(f), T.from_pretrained(f)\n"
        "out = m.generate(**t('Once upon a time', return_tensors='pt'), max_new_tokens=8, do_sample=False)\n"
        "print(type(m).__name__, out.shape[1])\n"
    )
    command = [sys.executable, "-I", "-c", code, str(clone / "models" / "hf")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    name, length = done.stdout.split()[-2:]
    assert name == "Qwen3MoeForCausalLM"
    assert int(length) > 8


def test_the_reports_can_be_shown_by_dvc(clone, repro):
    shown = json.loads(run(clone, "dvc", "metrics", "show", "--json"))
    of_the_run = {path: entry for path, entry in shown[""]["data"].items() if "/finetune/" not in path}
    assert set(of_the_run) == {f"reports/metrics/{stage}.json" for stage in STAGES[1:5]}
    numbers = [number for entry in of_the_run.values() for number in entry["data"]]
    assert 10 <= len(numbers) <= 14, "the dozen that people compare"
    for plot in yaml.safe_load((clone / "dvc.yaml").read_text("utf-8"))["plots"]:
        if isinstance(plot, str):
            assert (clone / plot).stat().st_size > 1000, plot
            continue
        for axes in plot.values():
            x = axes["x"] if isinstance(axes["x"], dict) else dict.fromkeys(axes["y"], axes["x"])
            for path, columns in [*x.items(), *axes["y"].items()]:
                with (clone / path).open(encoding="utf-8", newline="") as table:
                    written = next(csv.reader(table))
                assert set([columns] if isinstance(columns, str) else columns) <= set(written), path
    run(clone, "dvc", "plots", "show", "-o", "plots_shown")
    assert (clone / "plots_shown" / "index.html").stat().st_size > 1000
    shutil.rmtree(clone / "plots_shown")


@pytest.mark.timeout(600)
def test_finetuning_is_a_pipeline_of_its_own_and_leaves_the_other_as_it_was(clone, repro):
    before = (clone / "dvc.lock").read_bytes()
    output = run(clone, "dvc", "repro", "finetune/dvc.yaml")
    assert ran(output) == list(FINETUNE)
    for stage in FINETUNE:
        assert f"\n{stage}: wrote " in output, f"{stage} ends with no line that says what it wrote"
    assert (clone / "dvc.lock").read_bytes() == before
    assert ran(run(clone, "dvc", "repro")) == ran(run(clone, "dvc", "repro", "finetune/dvc.yaml")) == []
    figures = metrics(clone, "finetune/evaluate")
    assert figures["after"]["answers"]["loss"] < figures["before"]["answers"]["loss"]
    assert not (clone / "models" / "adapter" / "adapter_config.json").exists()
    lora = ["-S", "finetune=lora", "-S", "finetune.max_steps=4", "-S", "finetune.rank=2"]
    assert ran(run(clone, "dvc", "exp", "run", "finetune/dvc.yaml", *lora)) == list(FINETUNE)[1:]
    assert (clone / "models" / "adapter" / "adapter_config.json").is_file()
    assert metrics(clone, "finetune/finetune")["method"] == "lora"
    card = (clone / "models" / "finetuned-hf" / "README.md").read_text("utf-8")
    assert "finetuned on conversations (LoRA, added to the weights)" in card and "apply_chat_template" in card


# --- what a stage declares is what it reads ---------------------------------------------------------------------------

# Watchers cannot change what a stage computes: they validate parameters (whose values DVC tracks), speak, or look on.
WATCHERS = {"params", "stage", "console", "errors", "tracking"}
REFUSES_ONLY = {("train", "huggingface")}  # checks before training that the model can be exported
LOOK_ONLY = {
    ("train", "plotting"),
    ("finetune/finetune", "plotting"),
}  # a change of the pictures' look never trains again
RARELY = {("evaluate", "huggingface"), ("tokenize", "hub")}  # with lm-eval tasks; a tokenizer of the Hub
_SOURCES = [*get_args(get_args(params.Download)[0]), *get_args(get_args(params.Instruct)[0])]
OTHER_SOURCES = {kind.__name__ for kind in _SOURCES} - {"Local", "InstructLocal"}  # tests/download has them
OF_A_PRETRAINED_TOKENIZER = {"Tokenizer.path", "Tokenizer.revision"}  # tests/tokenize has some


@pytest.fixture(scope="session")
def recorded(clone, repro, tmp_path_factory) -> dict[str, dict[str, set]]:
    """What each stage imports, opens and reads of the parameters, with as much switched on as one run can have."""
    folder = tmp_path_factory.mktemp("recorded") / "project"
    shutil.copytree(clone, folder, ignore=shutil.ignore_patterns(".git", "checkpoints"))
    (folder / "books").mkdir()
    texts = [story.text for story in stories(300, seed=5)]
    texts.append(texts[7] + " And so it was.")
    (folder / "books" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    (folder / "books" / "b.jsonl").write_text(json.dumps({"text": texts[9]}) + "\n", "utf-8")
    (folder / "chats").mkdir()
    turns = [[{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": str(n)}] for n in range(80)]
    lines = [json.dumps({"messages": each}) + "\n" for each in turns]
    (folder / "chats" / "a.jsonl").write_text("".join(lines), "utf-8")
    rope = "{factor: 2, low_freq_factor: 1, high_freq_factor: 4, original_block_size: 32}"
    config = folder / "configs" / "config.yaml"
    text = config.read_text("utf-8").replace("download: {documents: 300}\n", "").replace("conversations: 300, ", "")
    config.write_text(text, "utf-8")
    quality = ["clean.quality.enabled=true", "clean.near_duplicates.enabled=true", "clean.script=latin"]
    quality.append("clean.decontaminate=[books/b.jsonl]")
    local = ["download=local", "download.path=books", "tokenizer.vocab_size=300"]
    lora = ["instruct=local", "instruct.path=chats", "finetune=lora", "finetune.rank=2"]
    run(folder, "pipeline.cli", "compose", *local, *quality, *lora, f"model.rope_scaling={rope}")
    found = {}
    for stage in MODULES:
        run(folder, "tests.recorder", MODULES[stage], "recorded.json")
        said = json.loads((folder / "recorded.json").read_text("utf-8"))
        found[stage] = {name: set(map(tuple, items) if name == "imports" else items) for name, items in said.items()}
    return found


def declared(stage: str) -> dict:
    """What dvc.yaml says of the stage, with the values of its data dependencies."""
    folder, _, name = stage.rpartition("/")
    text = (ROOT / folder / "dvc.yaml").read_text("utf-8").replace("${finetune.checkpoint}", "models/litgpt")
    return yaml.safe_load(text)["stages"][name]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", MODULES)
def test_a_stage_declares_the_rooms_of_code_that_it_imports(stage, recorded):
    imports = recorded[stage]["imports"]
    used, waiting = set(), ["__main__", f"stages.{MODULES[stage]}"]
    while waiting:
        module = waiting.pop()
        room = module.split(".")[1] if module.startswith("pipeline.") else ""
        if module not in used and room not in WATCHERS and (stage, room) not in REFUSES_ONLY | LOOK_ONLY:
            used.add(module)
            waiting += [imported for importer, imported in imports if importer == module]
    rooms = {module.split(".")[1] for module in used if module.startswith("pipeline.")}
    given = {Path(dep).stem for dep in declared(stage)["deps"] if dep.startswith("pipeline/")}
    assert rooms | {room for name, room in RARELY if name == stage} == given
    assert f"stages/{MODULES[stage]}.py" in declared(stage)["deps"]


@pytest.mark.parametrize("stage", MODULES)
def test_a_stage_declares_the_data_that_it_opens(stage, recorded):
    entry = declared(stage)
    flows = ("data/", "models/", "reports/")
    given = [dep for dep in entry["deps"] if dep.startswith(flows)]
    own = [*entry["outs"], *entry.get("metrics", []), "reports/live"]
    opened = {name for name in recorded[stage]["opened"] if name.startswith(flows) and "/." not in name}
    read = {name for name in opened if not any(Path(name).is_relative_to(out) for out in own)}
    stray = {name for name in read if not any(Path(name).is_relative_to(dep) for dep in given)}
    assert not stray - {"data", "models", "reports"}
    assert [dep for dep in given if not any(Path(name).is_relative_to(dep) for name in read)] == []


def test_every_parameter_is_read_by_a_stage_that_declares_its_section(recorded):
    def keys(model, section):
        for name, field in model.model_fields.items():
            for inner in inner_models(field.annotation):
                yield from keys(inner, section or name)
            if name != "watch" and section and model.__name__ not in OTHER_SOURCES:  # dvc.yaml reads `watch`
                yield section, f"{model.__name__}.{name}"

    def inner_models(annotation):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for part in get_args(annotation):
            yield from inner_models(part)

    readers = {
        section: [stage for stage in MODULES if section in declared(stage)["params"]]
        for section in params.Params.model_fields
    }
    unread = [
        key
        for section, key in keys(params.Params, "")
        if not any(key in recorded[stage]["parameters"] for stage in readers[section])
    ]
    assert not set(unread) - OF_A_PRETRAINED_TOKENIZER, unread


# --- changes ----------------------------------------------------------------------------------------------------------


def test_a_change_to_evaluate_runs_evaluate_and_export_at_most(clone, repro):
    changed = yaml.safe_load((clone / "params.yaml").read_text("utf-8"))
    changed["evaluate"]["seed"] += 1
    before = (clone / "params.yaml").read_text("utf-8")
    (clone / "params.yaml").write_text(yaml.safe_dump(changed), "utf-8")
    assert set(ran(run(clone, "dvc", "repro", "--dry"))) <= {"evaluate", "export"}
    (clone / "params.yaml").write_text(before, "utf-8")


@pytest.mark.timeout(600)
def test_an_experiment_with_fewer_experts_trains_on_the_same_tokens(clone, repro):
    output = run(clone, "dvc", "exp", "run", "-S", "model.n_expert=2")
    assert ran(output) == ["train", "evaluate", "export"]
    assert metrics(clone, "train")["parameters"]["total"] > 0
    shown = run(clone, "dvc", "exp", "show", "--csv")
    assert "model.n_expert" in shown


@pytest.mark.timeout(900)
def test_a_sweep_of_six_runs_goes_two_at_a_time_and_each_has_its_figures(clone, repro, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(clone, project, ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    (project / "configs/sweep/six.yaml").write_text('- ["model.n_expert=2,4", "train.optimizer.lr=1e-3,2e-3,4e-3"]\n')
    git(project, "add", "-A")
    git(project, "commit", "-qm", "a sweep")
    before = (project / "dvc.lock").read_bytes()
    cores = max(1, (os.cpu_count() or 1) // 2)
    output = run(project, "pipeline.cli", "sweep", "six", "-j2", "-S", "evaluate.max_new_tokens=4", OMP_NUM_THREADS="")
    assert f"sweep: 6 runs of six started, 2 at a time, CPU threads of each: {cores}." in output
    most, threads = 0, set()
    while (states := run(project, "dvc", "queue", "status")).count("Success") < 6:
        assert "Failed" not in states, states + run(project, "dvc", "queue", "logs", states.split()[0], check=False)
        most = max(most, states.count("Running"))
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # of one that has ended
                if "stages.train" in process.cmdline() and process.cwd().startswith(str(project)):
                    threads.add(process.environ()["OMP_NUM_THREADS"])
        time.sleep(1)
    assert (most, threads) == (2, {str(cores)})
    assert (project / "dvc.lock").read_bytes() == before, "the workspace is the user's"
    shown = json.loads(run(project, "dvc", "exp", "show", "--json", "--drop", "workspace"))
    runs = [each["revs"][0]["data"] for row in shown if row["experiments"] for each in row["experiments"]]
    values = [each["params"]["params.yaml"]["data"] for each in runs]
    assert {(v["model"]["n_expert"], v["train"]["optimizer"]["lr"]) for v in values} == {
        (n_expert, lr) for n_expert in (2, 4) for lr in (1e-3, 2e-3, 4e-3)
    }
    found = [each["metrics"]["reports/metrics/evaluate.json"]["data"]["bits_per_byte"] for each in runs]
    assert len(set(found)) == 6 and all(0 < each < 8 for each in found)
    said = run(project, "pipeline.cli", "compare", COLUMNS="200")
    assert all(f"{value:.4f}" in said for value in found)
    assert "n_expert=4, optimizer.lr=0.004" in said and "compare: 6 settings, " in said, said
    page = (project / "reports/compare.html").read_text()
    assert page.count("<svg") == 2 and "not in DVC" not in page
    refused = run(project, "pipeline.cli", "compare", "no-such", check=False)
    assert "'no-such' is no experiment, commit, branch or tag here; experiments: " in refused
    names = [each["name"] for row in shown if row["experiments"] for each in row["experiments"]]
    given = {"NAME": names[0], "NAME1": names[1], "NAME2": names[2]}
    for place, (program, *words) in commands():  # those of the page that come after a sweep
        if place.startswith("experiments.md") and words[0] != "sweep":
            words = [given.get(word, word) for word in words[: words.index(">") if ">" in words else None]]
            assert run(project, "dvc" if program == "dvc" else "pipeline.cli", *words), place


def test_a_misspelt_override_is_refused_in_the_first_second(clone, repro):
    before = (clone / "params.yaml").read_text("utf-8")
    output = run(clone, "dvc", "exp", "run", "-S", "+model.n_experts=4", check=False)
    (clone / "params.yaml").write_text(before, "utf-8")
    assert "model.n_experts = 4: no such parameter; did you mean model.n_expert?" in output
    assert "Traceback" not in output


def test_an_edit_of_a_file_behind_a_glob_or_of_a_benchmark_is_noticed(tmp_path):
    folder = new_clone(tmp_path / "project")
    config = folder / "configs" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("download: {documents: 300}\n", ""), "utf-8")
    told = [story.text.replace("\n", " ") for story in stories(40, seed=5)]
    books = folder / "data" / "own" / "books"
    books.mkdir(parents=True)
    (books / "a.txt").write_text("\n".join(told[:20]), "utf-8")
    (books / "b.txt").write_text("\n".join(told[20:]), "utf-8")
    (books / "notes.md").write_text("No story.", "utf-8")
    (folder / "bench.txt").write_text("A question of thirteen words and more that no story in this corpus has asked.")
    chosen = [
        "-S",
        "download=local",
        "-S",
        "download.path=data/own/books/*.txt",
        "-S",
        "clean.decontaminate=[bench.txt]",
    ]
    assert ran(run(folder, "dvc", "exp", "run", *chosen, "clean")) == ["download", "clean"]
    assert metrics(folder, "clean")["documents_in"] == 40
    (folder / "bench.txt").write_text(told[30], "utf-8")
    assert ran(run(folder, "dvc", "repro", "clean")) == ["clean"]
    assert metrics(folder, "clean")["dropped"]["benchmark_overlap"]["documents"] >= 1
    (books / "b.txt").write_text("\n".join(told[25:]), "utf-8")
    assert ran(run(folder, "dvc", "repro", "clean")) == ["download", "clean"]
    assert metrics(folder, "clean")["documents_in"] == 35
    refused = run(folder, "dvc", "exp", "run", "-S", "download=local", "-S", "download.path=*.txt", check=False)
    assert "*.txt: DVC must watch the folder of a glob, so name one" in refused


def test_the_same_stories_in_any_file_format_give_the_same_tokens(tmp_path):
    texts = [story.text for story in stories(120, seed=5)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    (tmp_path / "stories.jsonl").write_bytes(lines)
    (tmp_path / "stories.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.table({"text": texts}), tmp_path / "stories.parquet")
    hashes = {}
    for corpus in sorted(tmp_path.glob("stories.*")):
        folder = tmp_path / f"from-{corpus.name}"
        overrides = ["download=local", f"download.path={corpus}", "clean.val_fraction=0.1", "tokenizer.vocab_size=300"]
        compose(tmp_path / "params.yaml", ROOT / "configs", overrides)
        wanted = params.load(tmp_path / "params.yaml")
        sources.download(wanted.download, folder / "raw")
        cleaning.clean(wanted.clean, folder / "raw", folder / "clean", folder / "plots")
        tokenizer.build(wanted.tokenizer, folder / "clean", folder / "tokenizer")
        tokens.write(wanted.tokenizer, folder / "tokenizer", folder / "clean", folder / "tokens")
        hashes[corpus.name] = tree_md5(folder / "tokens")
    assert len(hashes) == 4
    assert len(set(hashes.values())) == 1, hashes
