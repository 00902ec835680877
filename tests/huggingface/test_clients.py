"""Exports in environments of their own, with other versions of transformers and with mlx-lm: MOE_CLIENTS=1 runs this.

MOE_CLIENTS=1 python -m pytest -n 0 tests/huggingface/test_clients.py     # some minutes; uv finds the packages
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import params
from pipeline.huggingface import verify
from pipeline.huggingface.folder import to_huggingface
from pipeline.model import build
from tests.model.small import tiny

pytestmark = [
    pytest.mark.skipif(not os.environ.get("MOE_CLIENTS"), reason="takes minutes; MOE_CLIENTS=1 runs it"),
    pytest.mark.timeout(1200),
]
STRETCHED = params.RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_block_size=32)
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"n_expert": 0, "n_expert_per_token": 0, "rope_base": 20_000, "tie_embeddings": False},
    "qwen3": {"n_expert": 0, "n_expert_per_token": 0, "norm_qk": True},
    "mixtral": {},
    "mixtral_wide_heads": {"head_size": 24, "rope_base": 500_000, "tie_embeddings": False},
    "mixtral_stretched": {"rope_scaling": STRETCHED},
    "qwen2_moe": {"n_shared_expert": 1, "norm_topk_prob": False, "tie_embeddings": False},
    "qwen2_moe_mixed": {"moe_every": 2},
    "qwen2_moe_stretched": {"n_shared_expert": 2, "rope_scaling": STRETCHED},
    "qwen3_moe": {"norm_qk": True, "tie_embeddings": False},
    "qwen3_moe_mixed": {"norm_qk": True, "moe_every": 2, "norm_topk_prob": False, "rope_base": 20_000},
    "glm4_moe": {"router": "sigmoid", "first_k_dense_replace": 1, "tie_embeddings": False},
    "glm4_moe_shared": {"router": "sigmoid", "norm_qk": True, "n_shared_expert": 1, "routed_scaling_factor": 2.5},
}
# mlx-lm has no tied GLM-4-MoE; in Qwen2-MoE neither dense layers nor norm_topk_prob; in Mixtral no wide heads and no
# stretched rope.
MLX_READS = {"llama", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_moe_mixed", "glm4_moe"}
TRANSFORMERS = """
import json, sys, pathlib, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    if json.loads((folder / "config.json").read_text())["model_type"] not in known:
        print(json.dumps({"model": folder.name, "difference": None}))
        continue
    wanted = torch.load(folder / "wanted.pt")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    assert words("Once upon a time", return_tensors="pt").keys() == {"input_ids", "attention_mask"}
    assert words.model_max_length == model.config.max_position_embeddings
    with torch.no_grad():
        difference = (model(wanted["ids"]).logits - wanted["logits"]).abs().max().item()
        text = model.generate(wanted["ids"][:, :8], attention_mask=torch.ones(1, 8).long(), max_new_tokens=24,
                              do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy = int((text == wanted["greedy"]).long().cumprod(1).sum()) - 8
    print(json.dumps({"model": folder.name, "difference": difference, "greedy": greedy}))
"""
MLX = """
import json, sys, pathlib, numpy, torch
import mlx.core as mx
from mlx_lm import load
for folder in [pathlib.Path(sys.argv[1]) / name for name in sys.argv[2:]]:
    wanted = torch.load(folder / "wanted.pt")
    model, _ = load(str(folder))
    ids = wanted["ids"].tolist()[0]
    logits = numpy.array(model(mx.array([ids])).astype(mx.float32))
    difference = float(abs(logits - wanted["logits"].numpy()).max())
    text = ids[:8]
    while len(text) < 32:
        text.append(int(mx.argmax(model(mx.array([text]))[0, -1])))
    equal = [a == b for a, b in zip(text, wanted["greedy"].tolist()[0])]
    greedy = (equal + [False]).index(False) - 8
    print(json.dumps({"model": folder.name, "difference": difference, "greedy": greedy}))
"""


@pytest.fixture(scope="module")
def exports(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export of every model, each with its logits and greedy tokens in wanted.pt."""
    place = tmp_path_factory.mktemp("exports")
    for name, changes in MODELS.items():
        gpt = build.build(tiny(**changes), 300)
        verify._randomize(gpt)
        to_huggingface(gpt.eval(), tokenizer_folder, place / name, "float32", 10**9)
        ids_BT = torch.randint(300, (1, 32), generator=torch.Generator().manual_seed(1))
        greedy_BT = ids_BT[:, :8]
        with torch.no_grad():
            logits_BTV = gpt(ids_BT)[..., :300]
            while greedy_BT.size(1) < 32:
                greedy_BT = torch.cat((greedy_BT, gpt(greedy_BT)[:, -1:, :300].argmax(-1)), 1)
        torch.save({"ids": ids_BT, "logits": logits_BTV, "greedy": greedy_BT}, place / name / "wanted.pt")
    return place


@pytest.mark.parametrize("version", ["==4.51.*", "==4.57.*", "==5.0.*", ">=5.24"])
def test_transformers_of_any_age_computes_the_same(version: str, exports: Path, tmp_path: Path) -> None:
    answers = _answers(
        tmp_path, [f"transformers{version}", f"torch=={torch.__version__.split('+')[0]}"], TRANSFORMERS, exports
    )
    unknown = {name for name in answers if name.startswith("glm4")} if version == "==4.51.*" else set()  # since 4.54
    _hold(answers, unknown)


def test_mlx_lm_computes_the_same(exports: Path, tmp_path: Path) -> None:
    wanted = ["mlx-lm", "mlx[cpu]", "numpy", f"torch=={torch.__version__.split('+')[0]}"]
    answers = _answers(tmp_path, wanted, MLX, exports, *sorted(MLX_READS))
    _hold(answers | {name: {"difference": None} for name in MODELS.keys() - MLX_READS}, MODELS.keys() - MLX_READS)


def _answers(place: Path, packages: list[str], program: str, exports: Path, *models: str) -> dict[str, dict[str, Any]]:
    """What the program prints of each export, run by a new environment that holds none of our code."""
    environment = os.environ | {"UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", ""))}
    uv, python = shutil.which("uv") or "uv", str(place / "env/bin/python")
    subprocess.run([uv, "venv", "-q", "--python", "3.11", place / "env"], check=True, env=environment)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, "numpy", *packages], check=True, env=environment)
    done = subprocess.run([python, "-I", "-c", program, exports, *models], capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr[-4000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for answer in answers:
        print(packages[0], answer)
    return {answer["model"]: answer for answer in answers}


def _hold(answers: dict[str, dict[str, Any]], unknown: set[str]) -> None:
    assert answers.keys() == MODELS.keys()
    assert {name for name, answer in answers.items() if answer["difference"] is None} == unknown
    for name in answers.keys() - unknown:
        assert answers[name]["difference"] <= 2e-5 and answers[name]["greedy"] == 24, answers[name]
