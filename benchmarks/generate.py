"""Tokens per second of generation, with the cache, without it, and by transformers: `python -m benchmarks.generate`.

All three write the same greedy tokens from the same weights in float32, in turns; the best of a few turns counts.
transformers gets the fastest of its ways to compute experts on the machine at hand.
"""

import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM

from pipeline.generate.generation import Generator
from pipeline.generate.sampling import Sampling
from pipeline.huggingface.folder import to_huggingface
from pipeline.model import checkpoint_folder
from pipeline.model.build import MoEGPT
from pipeline.model.layout import moe_layers

_EXPERTS = ("eager", "grouped_mm", "batched_mm")  # transformers' ways


def main(
    checkpoint: Annotated[Path, typer.Option(help="litgpt checkpoint folder.")] = Path("models/litgpt"),
    prompt: Annotated[str, typer.Option()] = "Once upon a time",
    new_tokens: Annotated[int, typer.Option(help="Tokens to write; fewer if the context ends before.")] = 256,
    turns: Annotated[int, typer.Option(help="The best of so many.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0: its own choice.")] = 0,
    device: Annotated[str, typer.Option()] = "cpu",
) -> None:
    """Print a Markdown table, and whether the goals hold."""
    if threads:
        torch.set_num_threads(threads)
    model = checkpoint_folder.load(checkpoint, device, torch.float32)
    generator = Generator(model, checkpoint)
    generator.eos_ids = frozenset()  # every way writes to the full length
    ids = generator.encode(prompt)
    n_new = min(new_tokens, generator.context - len(ids))
    with tempfile.TemporaryDirectory() as folder:
        to_huggingface(checkpoint_folder.load(checkpoint), checkpoint, Path(folder) / "hf", "float32", 10**10)
        theirs: Any = AutoModelForCausalLM.from_pretrained(Path(folder) / "hf", dtype=torch.float32)
    theirs.to(device)
    theirs.generation_config.eos_token_id = None
    print(_where(checkpoint, device, len(ids), n_new))
    print("| prompts | ours, cache | ours, no cache | transformers | cache / no cache | ours / transformers |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for rows in (1, 8):
        greedy = Sampling(temperature=0, max_new_tokens=n_new)
        idx_BT = torch.tensor([ids] * rows, device=device)
        ways: dict[str, Callable[[], Any]] = {
            "cache": partial(generator.generate, [prompt] * rows, greedy),
            "no cache": partial(_without_cache, model, idx_BT, n_new),
        }
        for way in _EXPERTS if moe_layers(model.params) else ("eager",):
            ways[way] = partial(_transformers, theirs, idx_BT, n_new, way)
        speed = {name: rows * n_new / seconds for name, seconds in _best(ways, turns).items()}
        quickest = max(_EXPERTS, key=lambda way: speed.get(way, 0))
        cells = [speed["cache"], speed["no cache"], speed[quickest]]
        shown = " | ".join(f"{tokens:,.0f}" for tokens in cells)
        ratios = f"{cells[0] / cells[1]:.1f} | {cells[0] / cells[2]:.2f} ({quickest})"
        print(f"| {rows} | {shown} | {ratios} |", flush=True)
    print(
        "\nIn tokens/s over all prompts, prompt included in the time. Goals: cache / no cache at least 5, ours / "
        "transformers at least 1."
    )


@torch.inference_mode()
def _without_cache(model: MoEGPT, idx_BT: torch.Tensor, n_new: int) -> torch.Tensor:
    for _ in range(n_new):
        idx_BT = torch.cat([idx_BT, model.lm_head(model.hidden(idx_BT)[:, -1:]).argmax(-1)], 1)
    return idx_BT


def _transformers(theirs: Any, idx_BT: torch.Tensor, n_new: int, way: str) -> torch.Tensor:
    theirs.set_experts_implementation(way)
    ones = torch.ones_like(idx_BT)
    return theirs.generate(idx_BT, attention_mask=ones, do_sample=False, max_new_tokens=n_new, pad_token_id=0)


def _best(ways: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Seconds of each way, the best of some turns in which all take part; one more before to warm up."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(turns + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                best[name] = min(best[name], time.perf_counter() - begun)
    return best


def _where(checkpoint: Path, device: str, n_prompt: int, n_new: int) -> str:
    chip = torch.cuda.get_device_name() if device == "cuda" else _processor()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "litgpt"))
    return (
        f"{chip}, {torch.get_num_threads()} threads; {packages}; commit {commit or 'unknown'}; "
        f"{checkpoint}, {n_prompt} tokens of prompt, {n_new} new\n"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(": ", 1)[1] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    typer.run(main)
