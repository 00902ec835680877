"""Presets fit the hardware they are named after, by counting; running out of memory comes with advice."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import params
from pipeline.cli.compose import compose
from pipeline.errors import UserError
from pipeline.model import build, cpu_kernels, products, size
from pipeline.model.layout import moe_layers
from pipeline.train import memory
from pipeline.train.optimizers import OPTIMIZERS
from tests.train.small import ROOT, run, tiny

GPT2 = 50257


@pytest.mark.parametrize(
    ("preset", "gigabytes"),
    [
        ("rtx3060", 6),
        ("kaggle_t4x2", 15),
        ("gpu16gb", 16),
        ("gpu24gb", 24),
        ("gpu40gb", 40),
        ("h200", 141),
        ("multinode", 40),
    ],
)
def test_a_preset_leaves_a_tenth_of_its_cards_memory_free(tmp_path: Path, preset: str, gigabytes: int) -> None:
    compose(tmp_path / "params.yaml", ROOT / "configs", [f"train={preset}", "model=moe_200m"])
    parameters = params.load(tmp_path / "params.yaml")
    total = size.count(parameters.model, GPT2).total
    assert memory.needed(parameters.model, parameters.train, memory.Weights(total), GPT2).total < 0.9 * gigabytes * 1e9


def test_adamw_in_float32_takes_16_bytes_a_parameter() -> None:
    parameters = tiny()
    need = memory.needed(parameters.model, parameters.train, memory.Weights(1000), 257)
    assert need.weights + need.gradients + need.optimizer == 16_000


def test_activations_are_counted_no_lower_than_what_autograd_keeps_and_not_far_above() -> None:
    parameters = tiny(model={"n_embd": 128, "n_layer": 4, "moe_intermediate_size": 256, "block_size": 128},
                      block_size=128, micro_batch_size=8)  # fmt: skip
    model = build.build(parameters.model, 257)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x_BTC = model.hidden(torch.zeros(8, 128, dtype=torch.int64))
    counted = memory.needed(parameters.model, parameters.train, memory.Weights(0), 0).activations - memory._LIBRARIES
    assert sum(kept.values()) <= counted <= 1.6 * sum(kept.values())  # the CPU's kernel keeps less than a GPU's
    del x_BTC


def preset_200m(place: Path, *changes: str) -> params.Params:
    compose(place / "params.yaml", ROOT / "configs", ["train=gpu16gb", "model=moe_200m", *changes])
    return params.load(place / "params.yaml")


def test_copies_of_experts_weights_for_blocks_of_assignments_are_counted_on_a_gpu(tmp_path: Path) -> None:
    """By hand, for 2048 tokens routed to 2 of 8 experts: blocks of 128 assignments, 32 and one an expert."""
    gpu = preset_200m(tmp_path)
    cpu = gpu.train.model_copy(update={"device": "cpu"})
    more = (
        memory.needed(gpu.model, gpu.train, memory.Weights(0), 0).activations
        - memory.needed(gpu.model, cpu, memory.Weights(0), 0).activations
    )
    copies = 40 * (2 * 2048 * 768 + 768 * 2048) * 2 * 2  # bfloat16, and as much for their gradients
    padding = 12 * (40 * 128 - 4096) * (2 * 768 + 4 * 2048) * 2
    assert more + memory._LIBRARIES == copies + padding


def test_a_chunked_loss_keeps_the_heads_gradient_in_float32(tmp_path: Path) -> None:
    whole, chunked = (preset_200m(tmp_path, f"train.loss_chunk={chunk}") for chunk in (0, 1024))
    head = [memory.needed(each.model, each.train, memory.Weights(0), GPT2).activations for each in (whole, chunked)]
    logits = [tokens * GPT2 * (2 + 4 + 4) for tokens in (2048, 1024)]
    assert head[1] - head[0] == logits[1] - logits[0] + GPT2 * 768 * (4 + 2)


def test_a_dense_baselines_memory_is_its_own(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = memory.explained
    monkeypatch.setattr(memory, "explained", lambda model, *rest: seen.append(model) or original(model, *rest))
    run(corpus, tmp_path, tiny(model={"dense_baseline": "active"}, max_steps=1))
    assert [moe_layers(model) for model in seen] == [[]] and seen[0].intermediate_size > 64


def test_running_out_of_memory_says_what_to_lower_and_what_that_saves() -> None:
    parameters = tiny(micro_batch_size=8)
    with (
        pytest.raises(UserError, match=r"train\.micro_batch_size=4 saves about [\d.]+ [kM]B") as advice,
        memory.explained(parameters.model, parameters.train, memory.Weights(10**6), 257, torch.device("cpu")),
    ):
        torch.empty(2**55)
    assert "activation_checkpointing=true saves" in str(advice.value)


def test_other_errors_are_left_alone() -> None:
    parameters = tiny()
    with (
        pytest.raises(RuntimeError, match="something else"),
        memory.explained(parameters.model, parameters.train, memory.Weights(1), 1, torch.device("cpu")),
    ):
        raise RuntimeError("something else")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_the_table_has_its_memory_counted_and_is_advised_where_it_runs(name: str) -> None:
    parameters = tiny(optimizer={"name": name}, device="cuda", micro_batch_size=8)
    counted = memory.needed(parameters.model, parameters.train, memory.Weights(1000), 257).optimizer
    assert counted == round(1000 * OPTIMIZERS[name].state_bytes(4)) > 0
    advice = memory.advice(parameters.model, parameters.train, memory.Weights(10**9), 257, torch.device("cpu"))
    advised = {other for other in OPTIMIZERS if f"train.optimizer.name={other} " in advice}
    assert all("cpu" in OPTIMIZERS[other].devices for other in advised)


def test_each_kind_of_device_is_asked_for_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (500 if device == "cuda:1" else 0, 1000))
    assert memory.available("mps:0") == memory.available("mps") == 900
    assert memory.available("cuda:1") == 450
    assert 0 < memory.available("cpu", processes=2) < memory.available("cpu")


@pytest.mark.parametrize(
    ("folder", "bound", "used", "droppable"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_containers_copies_of_files_count_as_free(
    tmp_path: Path, folder: str, bound: str, used: str, droppable: str
) -> None:
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / used).write_text("700\n")
    (place / "memory.stat").write_text(f"anon 100\n{droppable} 250\nfile 300\n")
    for most, left in (("1000", 550), ("max", math.inf)):
        (place / bound).write_text(f"{most}\n")
        assert memory._left_in_container(tmp_path) == left


@pytest.mark.skipif(sys.platform != "linux", reason="what the heap takes is glibc's")
@pytest.mark.parametrize("precision", ["auto", "32-true"])
@pytest.mark.parametrize("preset", ["moe_tiny", "moe_30m", "microstories"])
def test_memory_on_a_cpu_is_foretold_within_15_percent(tmp_path: Path, preset: str, precision: str) -> None:
    if precision == "auto" and (products.emulated() or cpu_kernels.load()):
        pytest.skip("foretold for a processor with bfloat16 and a compiler")
    compose(tmp_path / "params.yaml", ROOT / "configs", [f"model={preset}", f"train.precision={precision}"])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.train.peak", str(tmp_path / "params.yaml")]
    said = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    foretold, measured = map(float, said.split())
    assert foretold == pytest.approx(measured, rel=0.15)
