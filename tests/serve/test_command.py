"""`moe serve` as a process: it says where it is, answers, logs nothing that was asked, and ends with Ctrl-C."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.generate.generation import Generator


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal")
def test_it_says_where_it_is_answers_and_ends_with_ctrl_c_having_logged_no_text(base: Generator) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0", "--checkpoint", str(base.tokenizer_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"at (http://127\.0\.0\.1:\d+), for OpenAI's clients at \1/v1; Ctrl-C ends it", line)
        assert found, line
        body = {"prompt": "the dog and the cat", "max_tokens": 20}
        text = httpx.post(f"{found[1]}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
        assert httpx.post(f"{found[1]}/v1/completions", json=body | {"stop": "the dog" * 9, "n": 99}).status_code == 400
        with httpx.stream("POST", f"{found[1]}/v1/completions", json=body | {"stream": True}) as answer:
            next(answer.iter_lines())
            server.send_signal(signal.SIGINT)
        rest = server.stdout.read()
    assert server.returncode == 0
    assert rest.strip() == "serve: ended" and "the dog" not in line and text not in line


def test_what_cannot_be_served_is_refused_in_words(base: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["serve", *arguments])
        assert (result.exit_code, result.stdout) == (2, "")
        return " ".join(result.stderr.split())

    monkeypatch.delenv("MOE_SERVE_TOKEN", raising=False)
    assert "set the environment variable MOE_SERVE_TOKEN" in refused("--host", "0.0.0.0")
    monkeypatch.setenv("MOE_SERVE_TOKEN", "short")
    assert "MOE_SERVE_TOKEN is shorter than 16 characters" in refused()
    monkeypatch.delenv("MOE_SERVE_TOKEN")
    assert "nowhere is no folder" in refused("--checkpoint", "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = refused("--checkpoint", str(Path(base.tokenizer_folder)), "--port", port)
    assert f"--host 127.0.0.1 --port {port}: " in words and "--port 0 finds a free one" in words
