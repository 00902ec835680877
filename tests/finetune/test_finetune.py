"""Finetuning: what trains and what stays, the loss on flagged tokens, adapters against references."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from litgpt.lora import LoRALinear
from torch import nn

from pipeline import params
from pipeline.errors import UserError
from pipeline.finetune import finetune, lora
from pipeline.huggingface import folder as huggingface
from pipeline.model import build, checkpoint_folder
from pipeline.params import Params
from pipeline.tokens.flags import FIRST, ID, LOSS
from pipeline.train import memory, plan
from pipeline.train.data import Samples
from pipeline.train.step import Objective
from tests.model.small import tiny as small_model
from tests.train.small import ROOT, tiny

ALL = ["attention", "experts", "router", "head"]


def settings(pretrained: Path, **chosen: Any) -> Params:
    """tiny's parameters with a short finetuning of the pretrained model."""
    raw = tiny(**chosen.pop("train", {})).model_dump(mode="json")
    raw["finetune"] |= {
        "checkpoint": str(pretrained), "global_batch_size": 4, "micro_batch_size": 2,
        "max_steps": 12, "max_epochs": None,
    } | chosen  # fmt: skip
    return params.validate(raw)


def run(instruct: Path, out: Path, parameters: Params, **more: Any) -> dict[str, Any]:
    return finetune.finetune(
        parameters, data=instruct, into=out / "finetuned", adapter=out / "adapter", runs=out / "runs",
        live=out / "live", plots=None, **more,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "lit_model.pth", weights_only=True)
    return state


# --- the loss -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_loss_is_that_of_each_conversation_alone_over_its_trained_tokens(instruct: Path, pretrained: Path) -> None:
    model = checkpoint_folder.load(pretrained).double()
    samples = Samples(instruct / "train", 32, None)
    tokens_BS = samples.__getitems__([0, 1, 2])
    train = settings(pretrained).train
    objective = Objective(model, train, eos_id=0, flags=True).eval()
    total, count = 0.0, 0
    for row_S in tokens_BS:
        starts = [i for i in range(32) if row_S[i] & FIRST] + [32]
        for begin, end in itertools.pairwise(starts):
            trained = [i for i in range(begin + 1, end) if row_S[i] & LOSS]
            if trained:
                logits_TV = model((row_S[begin:end] & ID)[None])[0]
                for i in trained:
                    total += float(F.cross_entropy(logits_TV[i - begin - 1], row_S[i] & ID))
                count += len(trained)
    assert count == int(objective.weight(tokens_BS)) > 0
    assert float(objective(tokens_BS)[0]) == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("micro", [1, 2])
def test_a_step_has_the_gradient_of_all_its_targets_however_they_are_cut(
    instruct: Path, pretrained: Path, tmp_path: Path, micro: int
) -> None:
    chosen = {"max_steps": 1, "global_batch_size": 4, "balance_coef": 0.0, "z_loss_coef": 0.0}
    run(instruct, tmp_path / "whole", settings(pretrained, method="full", micro_batch_size=4, **chosen))
    run(instruct, tmp_path / "cut", settings(pretrained, method="full", micro_batch_size=micro, **chosen))
    (one,), (other,) = (list((tmp_path / name / "runs").glob("*/metrics.csv")) for name in ("whole", "cut"))
    columns = one.read_text().splitlines()[0].split(",")
    for column in ("lm_loss", "grad_norm"):
        values = [float(path.read_text().splitlines()[1].split(",")[columns.index(column)]) for path in (one, other)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


# --- what trains --------------------------------------------------------------------------------------------------


def test_all_weights_train_and_the_answers_become_likelier(instruct: Path, pretrained: Path, tmp_path: Path) -> None:
    report = run(instruct, tmp_path, settings(pretrained, method="full", max_steps=40, eval_every=1))
    (metrics,) = (tmp_path / "runs").glob("*/metrics.csv")
    rows = [line.split(",") for line in metrics.read_text().splitlines()]
    first = float(rows[1][rows[0].index("val_loss")])
    assert report["val_loss"] < 0.7 * first
    assert report["trained_parameters"] == sum(p.numel() for p in checkpoint_folder.load(pretrained).parameters())
    before, after = weights(pretrained), weights(tmp_path / "finetuned")
    assert all(not before[name].equal(after[name]) for name in before if "e_score" not in name)
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["README.md"]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_weights_stay_bit_identical_and_only_the_adapter_has_optimizer_state(
    instruct: Path, pretrained: Path, tmp_path: Path, name: str
) -> None:
    parameters = settings(pretrained, method="lora", targets=["attention"], rank=2)
    optimizer = parameters.finetune.optimizer.model_copy(update={"name": name})
    chosen = parameters.finetune.model_copy(update={"optimizer": optimizer})
    report = run(instruct, tmp_path, parameters.model_copy(update={"finetune": chosen}))
    before, after = weights(pretrained), weights(tmp_path / "finetuned")
    for weight in before:
        assert before[weight].equal(after[weight]) != (".attn.qkv" in weight or ".attn.proj" in weight), weight
    (state,) = (tmp_path / "runs").glob("*/step-*/state.pt")
    optimizers = torch.load(state, weights_only=True)["optimizers"]
    held = sum(len(optimizer["state"]) for optimizer in optimizers)
    assert held == 2 * 2 * 2  # A and B of qkv and proj, in two layers
    assert report["trained_parameters"] < 0.2 * report["parameters"]["total"]


@pytest.mark.parametrize("targets", [["attention"], ALL])
def test_the_memory_of_an_adapter_is_counted_as_autograd_keeps_it(pretrained: Path, targets: list[str]) -> None:
    """Weights, gradients and state exactly; what a forward keeps no lower than it is, and not far above."""
    parameters = settings(pretrained, method="lora", targets=targets, rank=2)
    own = finetune.of_checkpoint(parameters)
    model = checkpoint_folder.load(pretrained)
    adapter = lora.Lora(parameters.finetune, Path("unused"))
    counted = plan.weights(own.model, model.config.vocab_size, adapter)
    adapter.put_in(model, 0)
    sizes = [sum(p.numel() for p in model.parameters() if p.requires_grad is trains) for trains in (True, False)]
    assert [counted.trained, counted.frozen] == sizes
    need = memory.needed(own.model, own.train, counted, model.config.padded_vocab_size)
    assert [need.weights, need.gradients, need.optimizer] == [4 * sum(sizes), 4 * sizes[0], 8 * sizes[0]]
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.zeros(own.train.micro_batch_size, 32, dtype=torch.int64)).sum()
    counted_activations = need.activations - memory._LIBRARIES
    assert (
        sum(kept.values()) <= counted_activations <= 2.5 * sum(kept.values())
    )  # frozen layers keep less than is counted
    del loss


def test_a_target_that_the_model_has_not_is_refused(instruct: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finetune.targets: shared_experts does not fit this model \(it has none\)"):
        run(instruct, tmp_path, settings(pretrained, method="lora", targets=["shared_experts"]))


def test_a_token_set_of_documents_is_refused(corpus: Path, instruct: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no token set of conversations"):
        run(corpus / "tokens", tmp_path, settings(pretrained))


def test_a_batch_that_devices_do_not_divide_is_refused_with_the_field(
    instruct: Path, pretrained: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"finetune.global_batch_size: 4 is no multiple of micro_batch_size x"):
        run(instruct, tmp_path, settings(pretrained, micro_batch_size=3))


def test_lora_with_sharded_weights_is_refused(instruct: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finetune.method: lora does not go with train.strategy: fsdp; take auto"):
        run(instruct, tmp_path, settings(pretrained, method="lora", train={"strategy": "fsdp", "device": "auto"}))


def test_another_rank_is_another_run(instruct: Path, pretrained: Path, tmp_path: Path) -> None:
    lora = {"method": "lora"}
    each: list[dict[str, Any]] = [{"method": "full"}, lora, lora | {"rank": 3}, lora | {"seed": 1}]
    keys = {finetune.fingerprint(settings(pretrained, **chosen), instruct, tmp_path) for chosen in each}
    assert len(keys) == len(each)


# --- adapters against references ----------------------------------------------------------------------------------


def adapted(model: build.MoEGPT, targets: list[str], **chosen: Any) -> lora.Lora:
    """Put an adapter into the model, with a B that is not zero."""
    raw = yaml.safe_load((ROOT / "configs/finetune/lora.yaml").read_text(encoding="utf-8"))
    adapter = lora.Lora(params.Finetune(**(raw | {"targets": targets, "rank": 3, "alpha": 5} | chosen)), Path("unused"))
    adapter.put_in(model, seed=1)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.05)
    return adapter


def test_the_adapter_of_stacked_experts_is_litgpts_lora_on_each_expert() -> None:
    model = build.build(small_model(), 50, seed=0)
    adapted(model, ["experts"])
    layer = model.transformer.h[1].mlp
    x_NC = torch.randn(7, 32)
    for name in lora.STACKED:
        low_rank = layer.parametrizations[name][0]
        for e in range(4):
            original = layer.parametrizations[name].original[e]
            reference = LoRALinear(original.size(1), original.size(0), r=3, lora_alpha=5, bias=False)
            reference.linear.weight, reference.lora_A, reference.lora_B = (
                nn.Parameter(tensor) for tensor in (original, low_rank.lora_A[e], low_rank.lora_B[e])
            )
            assert torch.allclose(x_NC @ getattr(layer, name)[e].T, reference(x_NC), atol=1e-5)


def test_a_new_adapter_changes_nothing_and_its_matrices_are_those_of_the_seed() -> None:
    idx_BT = torch.randint(50, (2, 16))
    plain, one, other = (build.build(small_model(tie_embeddings=False), 50, seed=0).eval() for _ in range(3))
    chosen = params.Finetune(**yaml.safe_load((ROOT / "configs/finetune/lora.yaml").read_text()) | {"targets": ALL})
    for model, seed in ((one, 1), (other, 2)):
        lora.Lora(chosen, Path("unused")).put_in(model, seed)
    with torch.no_grad():
        assert torch.allclose(plain(idx_BT), one(idx_BT), atol=1e-6)
    drawn = [dict(model.named_parameters()) for model in (one, other)]
    matrices = [name for name in drawn[0] if name.endswith("lora_A")]
    assert matrices and all(not drawn[0][name].equal(drawn[1][name]) for name in matrices)


def test_merging_keeps_the_logits_and_leaves_a_plain_model() -> None:
    model = build.build(small_model(tie_embeddings=False, n_shared_expert=1), 50, seed=0).eval()
    names = model.state_dict().keys()
    adapted(model, [*ALL, "shared_experts"])
    idx_BT = torch.randint(50, (2, 16))
    with torch.no_grad():
        expected = model(idx_BT)
        lora.merge(model)
        assert model.state_dict().keys() == names
        assert torch.allclose(model(idx_BT), expected, atol=1e-5)


CLASSES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {},
    "Qwen3MoeForCausalLM": {"norm_qk": True, "first_k_dense_replace": 1},
    "Qwen2MoeForCausalLM": {"n_shared_expert": 1, "norm_topk_prob": False, "head_size": 8, "n_query_groups": 4},
    "Glm4MoeForCausalLM": {"router": "sigmoid", "n_shared_expert": 1, "first_k_dense_replace": 1},
    "LlamaForCausalLM": {"n_expert": 0, "n_expert_per_token": 0},
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("only_linear", [True, False])
def test_peft_computes_the_same_logits_on_our_export(
    corpus: Path, tmp_path: Path, name: str, only_linear: bool
) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    from transformers import AutoModelForCausalLM

    from pipeline.huggingface.classes import adapter_of
    from pipeline.model.layout import moe_layers

    shape = small_model(tie_embeddings=False, **CLASSES[name])
    assert adapter_of(shape).name == name
    model = build.build(shape, 300, seed=0).eval()
    huggingface.to_huggingface(model, corpus / "tokenizer", tmp_path / "hf", "float32", 10**9)
    targets = ["attention", "head"] + (["mlp"] if not moe_layers(shape) else [])
    if not only_linear and moe_layers(shape):
        targets += ["experts"] + (["router"] if shape.router == "softmax" else [])
        targets += ["mlp"] if shape.first_k_dense_replace else []
        targets += ["shared_experts"] if shape.n_shared_expert else []
    adapter = adapted(model, targets, dropout=0.1 if only_linear else 0.0)
    adapter._adapter = tmp_path / "adapter"
    model.eval()
    idx_BT = torch.randint(250, (2, 16))
    with torch.no_grad():
        expected = model(idx_BT)
    adapter.save(model, tmp_path / "merged", corpus / "tokenizer")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = theirs(idx_BT).logits
    assert torch.allclose(logits, expected[..., : logits.size(-1)], atol=1e-4)
    merged = checkpoint_folder.load(tmp_path / "merged").eval()
    with torch.no_grad():
        assert torch.allclose(merged(idx_BT), expected, atol=1e-5)


# --- killed and resumed -------------------------------------------------------------------------------------------


def project(out: Path, instruct: Path, parameters: Params) -> dict[str, Any]:
    """How to start the stage in a project folder of its own."""
    (out / "data").mkdir(parents=True)
    (out / "data" / "instruct").symlink_to(instruct)
    (out / "params.yaml").write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    return {"args": [sys.executable, "-m", "stages.finetune"], "cwd": out, "env": environment, "text": True}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_finetuning_goes_on_and_ends_with_the_same_bytes(
    instruct: Path, pretrained: Path, tmp_path: Path, method: str
) -> None:
    parameters = settings(
        pretrained, method=method, targets=ALL, dropout=0.1, max_steps=300,
        train={"checkpoint_every": 10, "model": None, "optimizer": None},
    )  # fmt: skip
    started = project(tmp_path / "killed", instruct, parameters)
    process = subprocess.Popen(**started, stderr=subprocess.PIPE)
    while process.poll() is None and not list(tmp_path.glob("killed/checkpoints/finetune/*/step-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = subprocess.run(**started, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stdout
    alone = subprocess.run(**project(tmp_path / "alone", instruct, parameters), capture_output=True)
    assert alone.returncode == 0, alone.stderr
    names = ["models/finetuned/lit_model.pth"] + (["models/adapter/adapter_model.safetensors"] * (method == "lora"))
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    report = json.loads((tmp_path / "killed/reports/finetune/finetune.json").read_text())
    assert report["method"] == method and report["steps"] == 300


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_learn_what_one_learns(instruct: Path, pretrained: Path, tmp_path: Path, method: str) -> None:
    shared = {"method": method, "targets": ALL, "max_steps": 6, "balance_coef": 0.0, "micro_batch_size": 1}
    found = []
    for devices in (1, 2):
        parameters = settings(pretrained, **shared, train={"devices": devices, "model": None, "optimizer": None})
        done = subprocess.run(**project(tmp_path / str(devices), instruct, parameters), capture_output=True)
        assert done.returncode == 0, done.stderr
        found.append(weights(tmp_path / str(devices) / "models" / "finetuned"))
    one, two = found
    assert all((one[name] - two[name]).abs().max() < 1e-3 for name in one)
    report = json.loads((tmp_path / "2" / "reports/finetune/finetune.json").read_text())
    assert report["devices"] == 2
