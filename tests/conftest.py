"""What several rooms' tests share: a tokenizer, a small run, a project that has run. The longest files run first."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import params
from pipeline.cli.compose import compose
from pipeline.model import build, checkpoint_folder
from pipeline.storyteller import stories as storyteller
from pipeline.tokenize import tokenizer
from pipeline.tokenize import writer as tokens
from pipeline.tokens.tokenizer import vocab_size

ROOT = Path(__file__).parents[1]
LONGEST = ("test_pipeline.py", "test_resume.py", "test_distributed.py")  # so that no worker is left alone with one
TINY = [
    "tokenizer.vocab_size=512",
    "model.n_layer=3",
    "model.n_embd=32",
    "model.block_size=64",
    "model.intermediate_size=64",
    "model.moe_intermediate_size=32",
    "model.n_expert=4",
    "model.moe_every=1",
    "model.first_k_dense_replace=1",
    "train.block_size=48",
    "train.document_mask=false",
    "evaluate.batch_size=7",
    "evaluate.device=cpu",
    "evaluate.train_sample_tokens=3000",
    "evaluate.max_new_tokens=40",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clean = tmp_path_factory.mktemp("clean")
    (clean / "train").mkdir()
    texts = [story.text for story in storyteller.stories(60, 0)]
    pq.write_table(pa.table({"text": texts}), clean / "train" / "part-00000.parquet")
    wanted = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["tokenizer"] | {"vocab_size": 300}
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.build(params.Tokenizer(**wanted), clean, folder)
    return folder


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml, data/clean, data/tokenizer, data/tokens and models/litgpt."""
    folder = tmp_path_factory.mktemp("evaluated")
    compose(folder / "params.yaml", ROOT / "configs", TINY)
    parameters = params.load(folder / "params.yaml")
    texts = [story.text for story in storyteller.stories(200, seed=3)]
    for split, part in (("train", texts[30:]), ("val", texts[:30])):
        clean = folder / "data/clean" / split
        clean.mkdir(parents=True)
        table = pa.table({"text": part, "source": [f"shelf {i % 2}" for i in range(len(part))]})
        pq.write_table(table, clean / "part-00000.parquet")
    vocabulary = folder / "data/tokenizer"
    vocabulary.mkdir()
    tokenizer.build(parameters.tokenizer, folder / "data/clean", vocabulary)
    for split in ("train", "val"):
        (folder / "data/tokens" / split).mkdir(parents=True)
    tokens.write(parameters.tokenizer, vocabulary, folder / "data/clean", folder / "data/tokens")
    model = build.build(parameters.model, vocab_size(vocabulary), seed=1)
    checkpoint_folder.save(model, folder / "models/litgpt", vocabulary)
    return folder


@pytest.fixture(scope="session")
def parameters(work: Path) -> params.Params:
    return params.load(work / "params.yaml")


@pytest.fixture(scope="session")
def model(work: Path) -> build.MoEGPT:
    return checkpoint_folder.load(work / "models/litgpt")


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files, with outputs of a few bytes that dvc.lock takes for those of a run. Copy it to change it."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("clone") / "project"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    stages = [
        yaml.safe_load((folder / name).read_text("utf-8"))["stages"] for name in ("dvc.yaml", "finetune/dvc.yaml")
    ]
    for stage in [stage for pipeline in stages for stage in pipeline.values()]:
        for out in [*stage["outs"], *stage.get("metrics", [])]:
            path = folder / out if Path(out).suffix else folder / out / "file"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"made for": out}), encoding="utf-8")
    with contextlib.chdir(folder), Repo() as repo:
        repo.commit(force=True)
    return folder
