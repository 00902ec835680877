"""A finetuned model gives the same greedy answer in our chat, transformers, litgpt and llama.cpp."""

import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from litgpt.prompts import load_prompt_style

from pipeline.export import gguf
from pipeline.finetune import finetune
from pipeline.generate.chat import Chat
from pipeline.generate.generation import Generator
from pipeline.generate.sampling import Sampling
from pipeline.huggingface import folder as huggingface
from pipeline.instruct.instruct import instruct
from pipeline.model import checkpoint_folder
from tests.finetune.test_finetune import settings
from tests.instruct.conftest import checkpoint as checkpoint
from tests.instruct.test_instruct import pairs, wanted, written

QUESTION = "Say 7."


@pytest.fixture(scope="module")
def finetuned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finetuned/, the model that learned some answers, and hf/, its export."""
    place = tmp_path_factory.mktemp("finetuned")
    instruct(wanted(written(place, pairs(60))), checkpoint, place / "instruct")
    parameters = settings(checkpoint, method="full", max_steps=60)
    finetune.finetune(
        parameters, data=place / "instruct", into=place / "finetuned", adapter=place / "adapter", runs=place / "runs",
        live=place / "live", plots=None,
    )  # fmt: skip
    model = checkpoint_folder.load(place / "finetuned")
    huggingface.to_huggingface(model, place / "finetuned", place / "hf", "float32", 10**9)
    return place


@pytest.fixture(scope="module")
def answer(finetuned: Path) -> str:
    """Of our chat."""
    chat = Chat(Generator.open(finetuned / "finetuned"), Sampling(temperature=0, max_new_tokens=30))
    assert chat.templated
    said = "".join(chat.say(QUESTION))
    assert said.startswith("It is")
    return said


def test_in_transformers(finetuned: Path, answer: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(finetuned / "hf")
    words = transformers.AutoTokenizer.from_pretrained(finetuned / "hf")
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=words)
    turns = [{"role": "user", "content": QUESTION}]
    said = pipe(turns, max_new_tokens=30, do_sample=False)[0]["generated_text"][-1]
    assert said == {"role": "assistant", "content": answer}


def test_in_litgpt_chat(finetuned: Path, answer: str) -> None:
    assert load_prompt_style(finetuned / "finetuned").apply(QUESTION) == f"Instruct: {QUESTION}\nOutput:"
    done = subprocess.run(
        [sys.executable, "-m", "litgpt", "chat", str(finetuned / "finetuned"), "--precision", "32-true",
         "--temperature", "0", "--top_p", "0", "--max_new_tokens", "30"],
        input=f"{QUESTION}\n\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer in done.stdout


def test_in_llama_cpp(finetuned: Path, answer: str) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (uv pip install xllamacpp)")
    model = checkpoint_folder.load(finetuned / "finetuned")
    about = {"name": "stories", "license": "apache-2.0", "tags": ["text-generation"]}
    gguf.write(model, finetuned / "finetuned", finetuned / "model.gguf", "f32", about)
    chosen = xllamacpp.CommonParams()
    chosen.model.path, chosen.n_ctx, chosen.n_parallel = str(finetuned / "model.gguf"), 64, 1
    chosen.warmup, chosen.cpuparams.n_threads, chosen.verbosity, chosen.use_jinja = False, 1, -1, True
    server = xllamacpp.Server(chosen)
    asked = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 30, "temperature": 0}
    said = server.handle_chat_completions(asked)
    assert said["choices"][0]["message"]["content"] == answer
