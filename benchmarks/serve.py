"""Tokens per second of `moe serve`, one request after another and many clients at once: `python -m benchmarks.serve`.

The server is a process of its own, asked over HTTP on this machine; both ways ask for the same texts in each turn
(a draw that is a tie to the last bit may fall otherwise in a batch, so each way counts its own tokens).
"""

import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated

import httpx
import typer


def main(
    checkpoint: Annotated[str, typer.Option(help="As for `moe serve`.")] = "models/litgpt",
    clients: Annotated[int, typer.Option(help="Clients at once.")] = 8,
    requests: Annotated[int, typer.Option(help="Texts that each client asks for, one after another.")] = 4,
    prompt: Annotated[str, typer.Option()] = "Once upon a time",
    new_tokens: Annotated[int, typer.Option(help="Of each text at most; it may end by itself before.")] = 200,
    turns: Annotated[int, typer.Option(help="The median of so many.")] = 3,
) -> None:
    """Print a Markdown table, and whether the goal holds."""
    alone, together, first = [], [], []
    with served(checkpoint) as address, httpx.Client(base_url=address, timeout=600) as client:

        def write(seed: int) -> int:
            body = {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0.8, "seed": seed}
            answer = client.post("/v1/completions", json=body)
            answer.raise_for_status()
            return int(answer.json()["usage"]["completion_tokens"])

        write(0)
        for turn in range(turns):
            seeds = range(turn * clients * requests, (turn + 1) * clients * requests)
            begun = time.perf_counter()
            alone.append(sum(map(write, seeds)) / (time.perf_counter() - begun))
            begun = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                together.append(sum(pool.map(write, seeds)) / (time.perf_counter() - begun))
            begun = time.perf_counter()
            with client.stream("POST", "/v1/completions", json={"prompt": prompt, "stream": True}) as answer:
                next(answer.iter_lines())
                first.append(time.perf_counter() - begun)
    ratio = statistics.median(b / a for a, b in zip(alone, together, strict=True))
    print(f"{checkpoint}, {platform.machine()}, torch {version('torch')}, at most {new_tokens} tokens a text")
    print(f"| one after another | {clients} clients at once | ratio | first token of a stream |")
    print("| ---: | ---: | ---: | ---: |")
    print(
        f"| {statistics.median(alone):,.0f} tokens/s | {statistics.median(together):,.0f} tokens/s | {ratio:.2f} | "
        f"{1000 * statistics.median(first):.0f} ms |"
    )
    print(f"goal, at least 3 times as fast: {'reached' if ratio >= 3 else 'MISSED'}")


@contextmanager
def served(checkpoint: str) -> Iterator[str]:
    """The address of a server of its own."""
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0", "--checkpoint", checkpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://[\d.:]+", server.stdout.readline())
        if found is None:
            raise typer.Exit(2)  # the server has said why
        try:
            yield found[0]
        finally:
            server.send_signal(signal.SIGINT)


if __name__ == "__main__":
    typer.run(main)
