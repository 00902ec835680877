"""Training speed beside litgpt, transformers and a dense model: `python -m benchmarks.train --preset cpu_small`.

Each contender runs in a process of its own on the same tokens, the same batch and the same number of steps; marks are
set where a contender asks for its next batch. Steady tokens/s leaves out the first half of the steps.
What litgpt needs to run at all is named under the table.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

PRESETS: dict[str, list[str]] = {
    "cpu_small": [
        *("model=moe_tiny", "model.vocab_size=2048", "model.n_layer=6"),
        *("model.n_embd=384", "model.n_head=6"),
        *("model.n_query_groups=6", "model.n_expert=8", "model.moe_intermediate_size=512", "model.block_size=256"),
        *("model.norm_qk=false", "model.tie_embeddings=true"),
        *("train.global_batch_size=8", "train.micro_batch_size=8"),
    ],
    "moe_30m": ["model=moe_30m", "model.vocab_size=4096", "train.global_batch_size=8", "train.micro_batch_size=8"],
    "moe_200m": [
        *("model=moe_200m", "train.global_batch_size=16", "train.micro_batch_size=16", "train.loss_chunk=8192"),
        "train.precision=bf16-mixed",
    ],
    "rtx3060": [*("model=moe_200m", "train=rtx3060"), *("train.global_batch_size=4", "train.micro_batch_size=2")],
    "kaggle_t4x2": [
        *("model=moe_200m", "train=kaggle_t4x2", "train.devices=1", "train.strategy=auto"),
        *("train.global_batch_size=8", "train.micro_batch_size=1"),
    ],
}
# What transformers has for experts; which is fastest depends on the machine, so each is tried for a few steps.
EXPERTS = ("grouped_mm", "batched_mm", "eager")
TRIED_STEPS = 6
CONTENDERS = (
    *("ours", "ours, compiled", "ours, dense baseline", "litgpt", "litgpt, bf16-mixed", "HF Mixtral", "HF Qwen3-MoE"),
    *("HF Mixtral, bf16-mixed",),
)
NOTES = """
litgpt: `litgpt.pretrain.main` with `LLaMAMoE` (it always compiles); what was worked around is in
benchmarks/litgpt_reference.py. Where ours chooses its precision (`auto`), litgpt and transformers run in 32-true, or as
their name says. Hugging Face: the fastest `experts_implementation` of the three in a trial of some steps, which is
named; sdpa, AdamW fused, gradient clipping.
No contender but ours has balancing losses or statistics switched on; ours has both, and writes its metrics.
"""
app = typer.Typer(add_completion=False)


@app.command()
def main(
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "cpu_small",
    steps: Annotated[int, typer.Option(help="Optimizer steps of each contender.")] = 60,
    only: Annotated[list[str] | None, typer.Option(help="Contenders to run; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    gigabytes: Annotated[float | None, typer.Option(help="Memory of the GPU that may be used; else all.")] = None,
    child: Annotated[Path | None, typer.Option(hidden=True)] = None,
    experts: Annotated[str, typer.Option(hidden=True)] = EXPERTS[0],
) -> None:
    """Run the contenders one after another and print a Markdown table."""
    if child is not None:
        _contend(only[0] if only else "ours", child, steps, experts)
        return
    if gigabytes is not None:
        os.environ["MOE_BENCHMARK_GIGABYTES"] = str(gigabytes)
    with tempfile.TemporaryDirectory(prefix="moe-benchmark-") as place:
        _prepare(Path(place), settings(preset, steps, device), steps)
        results = dict(_best(name, Path(place), steps) for name in only or CONTENDERS)
        _print(preset, steps, Path(place), results)


def settings(preset: str, steps: int, device: str) -> list[str]:
    """Overrides of the default parameters: stories, a token a byte, and nothing but training."""
    return [
        *PRESETS[preset],
        *("tokenizer=bytes", f"train.max_steps={steps + 1}", "train.max_tokens=null", "train.eval_every=0"),
        *("train.eval_samples=1", "train.checkpoint_every=1000000", "train.log_every=10", "train.compile=off"),
        *("train.routing_gate.action=off", "train.document_mask=false", f"train.device={device}"),
        "evaluate.stride=null",
    ]


def _prepare(place: Path, overrides: list[str], steps: int) -> None:
    """The parameters, and tokens enough for all steps."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline import params
    from pipeline.cli.compose import compose
    from pipeline.storyteller import stories as storyteller
    from pipeline.tokenize import tokenizer
    from pipeline.tokenize import writer as tokens

    compose((place / "params.yaml").resolve(), overrides=overrides)
    parameters = params.load(place / "params.yaml")
    wanted = (steps + 2) * parameters.train.global_batch_size * parameters.train.block_size
    texts, size = [], 0
    for story in storyteller.stories(10**9, seed=0):
        texts.append(story.text)
        size += len(story.text)
        if size > 1.1 * wanted + 100_000:
            break
    for split, chosen in (("train", texts[50:]), ("val", texts[:50])):
        (place / "clean" / split).mkdir(parents=True)
        pq.write_table(pa.table({"text": chosen}), place / "clean" / split / "part-00000.parquet")
    tokenizer.build(parameters.tokenizer, place / "clean", place / "tokenizer")
    tokens.write(parameters.tokenizer, place / "tokenizer", place / "clean", place / "tokens")


def _best(name: str, place: Path, steps: int) -> tuple[str, dict[str, Any]]:
    """A contender's result; one of transformers' runs with the experts that were fastest, and bears their name."""
    if not name.startswith("HF"):
        return name, _measured(name, place, steps)
    tried = {each: _measured(name, place, min(steps, TRIED_STEPS), each) for each in EXPERTS}
    ran = {each: result["tokens_per_second"] for each, result in tried.items() if "error" not in result}
    if not ran:
        return name, tried[EXPERTS[0]]
    fastest = max(ran, key=lambda each: ran[each])
    return f"{name}, {fastest}", _measured(name, place, steps, fastest)


def _measured(name: str, place: Path, steps: int, experts: str = EXPERTS[0]) -> dict[str, Any]:
    """What a contender's process has to tell, or why it has nothing."""
    print(f"{name}{f', {experts}' if name.startswith('HF') else ''} …", file=sys.stderr, flush=True)
    environment = os.environ | {
        "MOE_BENCHMARK_BEGUN": str(time.time()),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, "-m", "benchmarks.train", "--child", str(place), "--only", name, "--steps", str(steps)]
    done = subprocess.run([*command, "--experts", experts], env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)  # the last line may be of the interpreter's end, not the error
        return {"error": (done.stderr.strip().splitlines() or ["no words"])[-1][:200]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _print(preset: str, steps: int, place: Path, results: dict[str, dict[str, Any]]) -> None:
    import torch
    import transformers

    from pipeline import params
    from pipeline.model import products, size
    from pipeline.train import hardware

    parameters = params.load(place / "params.yaml")
    device = torch.device(hardware.device_of(parameters.train))
    precision = parameters.train.precision
    if precision == "auto":
        precision = "32-true" if device.type == "cpu" and products.emulated() else "bf16-mixed"
    peak, origin = hardware.peak_flops(device, precision)
    measured = hardware.gemm_flops(device, torch.float32 if device.type == "cpu" else torch.bfloat16, seconds=2.0)
    rows = parameters.model.vocab_size or 0
    count = size.count(parameters.model, rows)
    flops = count.flops_per_token(parameters.train.block_size)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    train = parameters.train
    print(
        f"\n{preset}: {count.total / 1e6:.1f} M parameters, {count.active / 1e6:.1f} M active; batch "
        f"{train.global_batch_size} × {train.block_size}; {train.precision}; {steps} steps; {name}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}.\n"
        f"GEMM peak measured: {measured / 1e9:,.0f} GFLOP/s; MFU is against {peak / 1e9:,.0f} GFLOP/s ({origin}).\n"
    )
    print(f"| | tokens/s | MFU | memory, GB | first step done, s | {steps} steps done, s |\n|---|---|---|---|---|---|")
    for contender, r in results.items():
        if "error" in r:
            print(f"| {contender} | failed: {r['error']} | | | | |")
            continue
        utilisation = r["tokens_per_second"] * r.get("flops_per_token", flops) / peak
        print(
            f"| {contender} | {r['tokens_per_second']:,.0f} | {utilisation:.1%} | {r['memory'] / 1e9:.2f} | "
            f"{r['first']:.1f} | {r['all']:.1f} |"
        )
    print(NOTES)


# --- in a contender's process -----------------------------------------------------------------------------------------


class _Marks:
    """When each batch was asked for, on the device's clock: a GPU is waited for at the marks that count."""

    def __init__(self, steps: int) -> None:
        self._waits = {1, steps // 2, steps}
        self.times: list[float] = []

    def asked(self) -> None:
        import torch

        if torch.cuda.is_available() and len(self.times) in self._waits:
            torch.cuda.synchronize()
        self.times.append(time.time())

    def result(self, steps: int, tokens_per_step: int) -> dict[str, Any]:
        import torch

        begun, half = float(os.environ["MOE_BENCHMARK_BEGUN"]), steps // 2
        rate = (steps - half) * tokens_per_step / (self.times[steps] - self.times[half])
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident_peak()
        return {
            "tokens_per_second": rate,
            "first": self.times[1] - begun,
            "all": self.times[steps] - begun,
            "memory": memory,
        }


def _resident_peak() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _contend(name: str, place: Path, steps: int, experts: str) -> None:
    from pipeline import params

    if cap := os.environ.get("MOE_BENCHMARK_GIGABYTES"):
        import torch

        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, float(cap) * 1e9 / whole))
    parameters = params.load(place / "params.yaml")
    marks = _Marks(steps)
    extra: dict[str, Any] = {}
    if name.startswith("ours"):
        extra = _ours(name, parameters, place, marks)
    elif name.startswith("litgpt"):
        _litgpt(_precise(parameters, name), place, marks, steps)
    else:
        parameters = _precise(parameters, name)
        _huggingface(parameters, place, marks, steps, qk_norm="Qwen3" in name, experts=experts)
    tokens_per_step = parameters.train.global_batch_size * parameters.train.block_size
    print(json.dumps(marks.result(steps, tokens_per_step) | extra))


def _precise(parameters: Any, name: str) -> Any:
    """For those who know no `auto`: as the name says, else 32-true on a CPU and mixed on a GPU."""
    from pipeline.train import hardware

    train = hardware.settled(parameters.train, hardware.device_of(parameters.train))
    precision = "bf16-mixed" if "bf16-mixed" in name else {"auto": "32-true"}.get(train.precision, train.precision)
    return parameters.model_copy(update={"train": train.model_copy(update={"precision": precision})})


def _ours(name: str, parameters: Any, place: Path, marks: _Marks) -> dict[str, Any]:
    from pipeline.train import data, loop
    from pipeline.train.step import accumulation

    if "compiled" in name:
        parameters = parameters.model_copy(update={"train": parameters.train.model_copy(update={"compile": "on"})})
    if "dense baseline" in name:
        parameters = parameters.model_copy(
            update={"model": parameters.model.model_copy(update={"dense_baseline": "active"})}
        )
    read, micro_batches, asked = data.Samples.__getitems__, accumulation(parameters.train), 0

    def noted(self: data.Samples, positions: list[int]) -> Any:
        nonlocal asked
        if self._seed is not None:  # not for val
            if asked % micro_batches == 0:
                marks.asked()
            asked += 1
        return read(self, positions)

    data.Samples.__getitems__ = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=place) as out:
        here = Path(out)
        report = loop.train(
            parameters, place / "tokens", place / "tokenizer", here / "model",
            runs=here / "runs", live=here / "live", plots=None, resume="never",
        )  # fmt: skip
    return {"flops_per_token": report["flops_per_token"]}


def _batches(parameters: Any, place: Path, marks: _Marks) -> Iterator[Any]:
    """The same global batches that our loop reads, one micro batch at a time."""
    from pipeline.train import data

    train = parameters.train
    samples = data.Samples(place / "tokens" / "train", train.block_size, train.seed)
    step = 0
    while True:
        marks.asked()
        for positions in data.positions(train, step, 0, 1):
            yield samples.__getitems__(positions)
        step += 1


def _litgpt(parameters: Any, place: Path, marks: _Marks, steps: int) -> None:
    from benchmarks import litgpt_reference

    val = [next(_batches(parameters, place, _Marks(2)))]
    litgpt_reference.pretrain(parameters, lambda: _batches(parameters, place, marks), val, steps, 3, place / "litgpt")


def _refuse_copies_beyond_memory(parameters: Any) -> None:
    """batched_mm keeps a copy of an expert's weights a visit, and a system short of memory kills whom it likes."""
    import psutil

    model, train = parameters.model, parameters.train
    from pipeline.model.layout import moe_layers

    assigned = train.micro_batch_size * train.block_size * model.n_expert_per_token * len(moe_layers(model))
    need = assigned * 3 * model.moe_intermediate_size * model.n_embd * 4
    if need > psutil.virtual_memory().available:
        raise SystemExit(f"batched_mm would copy {need / 1e9:,.0f} GB of weights")


def _huggingface(parameters: Any, place: Path, marks: _Marks, steps: int, qk_norm: bool, experts: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.huggingface.weights import transformers_config
    from pipeline.train import hardware

    model, train, chosen = parameters.model, parameters.train, parameters.train.optimizer
    if qk_norm:
        model = model.model_copy(update={"norm_qk": True})
    device = torch.device(hardware.device_of(train))
    if experts == "batched_mm" and device.type == "cpu":
        _refuse_copies_beyond_memory(parameters)
    torch.manual_seed(train.seed)
    config = transformers_config(model, model.vocab_size)
    network = AutoModelForCausalLM.from_config(
        config, experts_implementation=experts, attn_implementation="sdpa", dtype=torch.float32
    ).to(device)
    from pipeline.train.step import accumulation

    network.train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=chosen.lr, betas=chosen.betas, weight_decay=chosen.weight_decay, fused=True
    )
    batches = _batches(parameters, place, marks)
    for _ in range(steps):
        for _ in range(accumulation(train)):
            tokens_BS = next(batches).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16-mixed"):
                logits_BTV = network(tokens_BS[:, :-1], use_cache=False).logits
                loss = torch.nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), tokens_BS[:, 1:].flatten())
            (loss / accumulation(train)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), chosen.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    next(batches)


if __name__ == "__main__":
    app()
