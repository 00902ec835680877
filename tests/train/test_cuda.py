"""What only a GPU can show: the layer in bfloat16, float16 with a scaled loss, steps that never wait for the device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.model import build
from pipeline.train import step as steps
from tests.train.small import run, tiny, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
bfloat16 = pytest.mark.skipif(
    not torch.cuda.is_available() or not torch.cuda.is_bf16_supported(False), reason="needs a GPU with bfloat16"
)


@bfloat16
@pytest.mark.parametrize("tokens", [1, 37, 512])
@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_the_layer_in_bfloat16_is_the_cpus_in_float32(tokens: int, router: str) -> None:
    """Weights and inputs are bfloat16 numbers in both, so that only the rounding of products and sums differs."""
    model = {"n_embd": 64, "moe_intermediate_size": 96, "n_expert": 8, "router": router}
    there = build.build(tiny(model=model).model, 257, seed=1, dtype=torch.bfloat16).transformer.h[0].mlp
    here = build.build(tiny(model=model).model, 257, seed=1).transformer.h[0].mlp
    here.load_state_dict({name: weight.float() for name, weight in there.state_dict().items()})
    there.to("cuda")
    generator = torch.Generator().manual_seed(tokens)
    x_BTC = torch.randn(1, tokens, 64, generator=generator).bfloat16()
    grad_BTC = torch.randn(1, tokens, 64, generator=generator).bfloat16()
    results = []
    for layer, device, dtype in ((here, "cpu", torch.float32), (there, "cuda", torch.bfloat16)):
        x = x_BTC.to(device, dtype).requires_grad_()
        y = layer(x)
        y.backward(grad_BTC.to(device, dtype))
        grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
        results.append({"y": y.detach(), "x": x.grad} | grads)
    for name, expected in results[0].items():
        error = (results[1][name].cpu().float() - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 0.03, name


def test_float16_with_a_scaled_loss_learns_and_saves_its_scale(corpus: Path, tmp_path: Path) -> None:
    parameters = tiny(device="cuda", precision="16-mixed", max_steps=25, optimizer={"lr": 0.01})
    report = run(corpus, tmp_path, parameters)
    first = run(corpus, tmp_path / "first", tiny(device="cuda", precision="16-mixed", max_steps=1))
    assert report["loss"] < first["loss"] - 0.5
    assert all(torch.isfinite(weight).all() for weight in weights(tmp_path).values())
    (saved,) = tmp_path.glob("runs/*/step-*/state.pt")
    scale = torch.load(saved, weights_only=True)["loss_scale"]
    assert scale["scale"] >= 1 and 0 < scale["good"] <= 25


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", pytest.param("bf16-mixed", marks=bfloat16)])
def test_no_step_waits_for_the_device(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    original = steps.Step.__call__

    def strict(self: Any, number: int, batches: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")  # torch raises where something waits
        try:
            original(self, number, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(steps.Step, "__call__", strict)
    report = run(corpus, tmp_path, tiny(device="cuda", precision=precision, max_steps=4, loss_chunk=50))
    assert report["steps"] == 4 and report["device"] == "cuda"
