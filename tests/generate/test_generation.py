"""Generation: transformers' greedy tokens, the same text alone and in a batch, whole characters, clear refusals."""

import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import litgpt
import litgpt.chat.base
import litgpt.generate.base
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import params
from pipeline.cli.terminal import opened
from pipeline.errors import UserError
from pipeline.generate import generation
from pipeline.generate.decoding import Decoder
from pipeline.generate.generation import Generator
from pipeline.generate.sampling import Sampling
from pipeline.generate.spelling import Spelling
from pipeline.huggingface.folder import to_huggingface
from pipeline.huggingface.verify import rounded
from pipeline.model import build, checkpoint_folder
from pipeline.tokenize import tokenizer
from pipeline.tokens import tokenizer as vocabulary
from tests.generate.making import KINDS, PROMPTS, made

GREEDY = Sampling(temperature=0, max_new_tokens=30)


@pytest.fixture(scope="module", params=list(KINDS))
def any_kind(
    request: pytest.FixtureRequest, work: Path, parameters: params.Params, tmp_path_factory: pytest.TempPathFactory
) -> Generator:
    return made(parameters, tmp_path_factory.mktemp("kind") / "litgpt", work / "data/tokenizer", request.param)


@pytest.fixture(scope="module")
def generator(work: Path, parameters: params.Params, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return made(parameters, tmp_path_factory.mktemp("made") / "litgpt", work / "data/tokenizer")


# --- the same tokens as others ----------------------------------------------------------------------------------------


def test_greedy_equals_transformers_token_for_token(any_kind: Generator, tmp_path: Path) -> None:
    to_huggingface(any_kind.model, any_kind.tokenizer_folder, tmp_path / "hf", "float32", 10**9)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for sampling in (GREEDY, Sampling(temperature=0, max_new_tokens=30, repetition_penalty=1.3)):
        for prompt, ours in zip(PROMPTS, any_kind.generate(PROMPTS, sampling), strict=True):
            given = words(prompt, return_tensors="pt", add_special_tokens=False)
            theirs = reference.generate(
                **given,
                max_new_tokens=min(30, any_kind.context - given["input_ids"].size(1)),
                do_sample=False,
                repetition_penalty=sampling.repetition_penalty,
            )[0, given["input_ids"].size(1) :]
            assert ours.text == words.decode(theirs, skip_special_tokens=True)
            assert ours.n_tokens == len(theirs)


def test_a_hugging_face_folder_and_its_litgpt_folder_give_the_same_text(generator: Generator, tmp_path: Path) -> None:
    to_huggingface(generator.model, generator.tokenizer_folder, tmp_path / "hf", "float32", 10**9)
    with opened(str(tmp_path / "hf"), "cpu") as exported:
        assert exported.generate(PROMPTS, GREEDY) == generator.generate(PROMPTS, GREEDY)


@pytest.mark.parametrize("kind", ["softmax", "dense", "sigmoid"])  # litgpt has no experts in every other layer
def test_litgpt_generate_runs_on_the_folder_and_says_the_same(
    work: Path, parameters: params.Params, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    plain = made(parameters, tmp_path / "litgpt", work / "data/tokenizer", kind)
    ours = plain.generate(["Once upon a time"], Sampling(temperature=0, max_new_tokens=12))[0].text
    capsys.readouterr()
    litgpt.generate.base.main(
        tmp_path / "litgpt",
        prompt="Once upon a time",
        max_new_tokens=12,
        temperature=0.0,
        top_p=0.0,
        precision="32-true",
    )
    assert capsys.readouterr().out.strip().endswith(f"Once upon a time{ours}".strip())


@pytest.mark.parametrize("kind", ["softmax", "dense", "sigmoid"])
def test_litgpt_chat_reads_a_pipe_and_answers_the_same(
    work: Path,
    parameters: params.Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    plain = made(parameters, tmp_path / "litgpt", work / "data/tokenizer", kind)
    prompts = ["Once upon a time", "The dog"]
    expected = [c.text for c in plain.generate(prompts, Sampling(temperature=0, max_new_tokens=12))]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*prompts, "", ""])))
    capsys.readouterr()
    litgpt.chat.base.main(
        tmp_path / "litgpt", max_new_tokens=12, temperature=0.0, top_p=0.0, top_k=None, precision="32-true"
    )
    replies = capsys.readouterr().out.split(">> Reply: ")[1:]
    assert [reply.split("\n>> Prompt:")[0].strip() for reply in replies] == [text.strip() for text in expected]


def test_the_api_that_litgpt_serve_answers_with_says_the_same(
    work: Path, parameters: params.Params, tmp_path: Path
) -> None:
    plain = made(parameters, tmp_path / "litgpt", work / "data/tokenizer")
    served = litgpt.LLM.load(str(tmp_path / "litgpt"), distribute=None)
    served.distribute(devices=1, accelerator="cpu", precision="32-true")
    said = served.generate("Once upon a time", temperature=0.0, top_k=None, top_p=0.0, max_new_tokens=12)
    ours = plain.generate(["Once upon a time"], Sampling(temperature=0, max_new_tokens=12))[0].text
    assert said.strip() == ours.strip()


def test_litgpt_serve_answers_over_http(work: Path, parameters: params.Params, tmp_path: Path) -> None:
    pytest.importorskip("litserve", reason="litserve is not installed (uv run --with litserve)")
    plain = made(parameters, tmp_path / "litgpt", work / "data/tokenizer")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "litgpt", "serve", str(tmp_path / "litgpt"), "--accelerator", "cpu"]
    command += ["--port", str(port), "--max_new_tokens", "12", "--temperature", "0", "--top_p", "0"]
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict",
        json.dumps({"prompt": "Once upon a time"}).encode(),
        {"Content-Type": "application/json"},
    )
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            said = _answered(asked, server, until=time.monotonic() + 120)
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # it has workers of its own
            server.wait()
    ours = plain.generate(["Once upon a time"], Sampling(temperature=0, max_new_tokens=12))[0].text
    assert said["output"].strip() == ours.strip()


def _answered(asked: urllib.request.Request, server: subprocess.Popen[bytes], until: float) -> dict[str, str]:
    while server.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return dict(json.load(answer))
        except OSError:  # it does not listen yet
            time.sleep(0.5)
    raise AssertionError("litgpt serve does not answer")


@torch.inference_mode()
def test_cached_logits_equal_those_of_the_whole_text(any_kind: Generator) -> None:
    ids = [any_kind.encode(prompt) for prompt in PROMPTS]
    more_BN = torch.randint(
        any_kind.model.config.vocab_size, (len(ids), 12), generator=torch.Generator().manual_seed(1)
    )
    decoder = Decoder(any_kind.model)
    logits = [decoder.add(ids, 12), *(decoder.step(token_B) for token_B in more_BN.T)]
    for b, row in enumerate(ids):
        whole_TV = any_kind.model(torch.tensor([row + more_BN[b].tolist()]))[0]
        torch.testing.assert_close(
            torch.stack([step[b] for step in logits]), whole_TV[len(row) - 1 :], rtol=0, atol=1e-4
        )


@torch.inference_mode()
def test_in_bfloat16_it_says_what_the_rounded_weights_say_up_to_rounding(any_kind: Generator) -> None:
    half = Generator.open(any_kind.tokenizer_folder, dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    exactly = rounded(half.model, torch.bfloat16)  # the same weights, computed in float32
    off = []
    for prompt in PROMPTS:
        ids, decoder = half.encode(prompt), Decoder(half.model)
        logits_1V = decoder.add([ids], 12)
        for _ in range(12):
            expected_V = exactly(torch.tensor([ids]))[0, -1]
            off.append(float((logits_1V[0].float() - expected_V).abs().max() / expected_V.abs().max()))
            ids = [*ids, int(expected_V.argmax())]
            logits_1V = decoder.step(torch.tensor(ids[-1:]))
    assert np.median(off) < 0.03 and max(off) < 0.3, off  # most by rounding, a few by an expert that was nearly tied
    half.eos_ids = frozenset()
    completion = half.generate(PROMPTS[:1], GREEDY)[0]
    assert completion.n_tokens == 30
    assert completion.text == "".join(half.stream(PROMPTS[0], GREEDY))


# --- alone, in a batch, as a stream -----------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(
    prompts=st.lists(st.sampled_from([*PROMPTS, "You said:", "dog"]), min_size=1, max_size=6),
    sampling=st.builds(
        Sampling,
        max_new_tokens=st.sampled_from([1, 20]),
        temperature=st.sampled_from([0.0, 0.9]),
        top_p=st.sampled_from([0.9, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
        seed=st.integers(0, 9),
        stop=st.sampled_from([(), ("e",), ("the", ".")]),
    ),
)
def test_a_prompt_has_the_same_text_alone_in_a_batch_and_streamed(
    generator: Generator, prompts: list[str], sampling: Sampling
) -> None:
    together = generator.generate(prompts, sampling)
    assert together == [generator.generate([prompt], sampling)[0] for prompt in prompts]
    assert [c.text for c in together] == ["".join(generator.stream(prompt, sampling)) for prompt in prompts]


def test_more_prompts_than_a_batch_holds(generator: Generator) -> None:
    prompts = [f"One day {i}" for i in range(generation._ROWS + 3)]
    short = Sampling(temperature=0, max_new_tokens=3)
    assert [c.prompt for c in generator.generate(prompts, short)] == prompts
    assert generator.generate(prompts[-1:], short) == generator.generate(prompts, short)[-1:]


def test_seeds_make_texts_differ_and_repeat(generator: Generator) -> None:
    texts = [generator.generate(["Once"], Sampling(seed=seed))[0].text for seed in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]


def test_a_full_context_ends_the_text(generator: Generator) -> None:
    generator_without_eos = Generator(generator.model, generator.tokenizer_folder)
    generator_without_eos.eos_ids = frozenset()
    completion = generator_without_eos.generate(["Once upon a time"], Sampling(max_new_tokens=10**6))[0]
    assert completion.finish_reason == "length"
    assert completion.n_tokens == generator.context - len(generator.encode("Once upon a time"))


def test_the_eos_token_ends_the_text_and_is_not_in_it(generator: Generator) -> None:
    free = Generator(generator.model, generator.tokenizer_folder)
    free.eos_ids = frozenset()
    text = free.generate(["Once upon a time"], GREEDY)[0].text
    free.eos_ids = frozenset(generator.encode(text[-3:])[-1:])
    completion = free.generate(["Once upon a time"], GREEDY)[0]
    assert completion.finish_reason == "end"
    assert text.startswith(completion.text) and len(completion.text) < len(text)


def test_an_eos_token_of_the_generation_settings_counts_too(generator: Generator, tmp_path: Path) -> None:
    folder = shutil.copytree(generator.tokenizer_folder, tmp_path / "litgpt")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert Generator.open(folder).eos_ids == generator.eos_ids | {7, 9}


@pytest.mark.parametrize("end", [{"content": "<|endoftext|>", "lstrip": False}, None])
def test_a_hub_folder_may_spell_its_eos_token_as_an_object_or_have_none(
    generator: Generator, tmp_path: Path, end: object
) -> None:
    to_huggingface(generator.model, generator.tokenizer_folder, tmp_path / "hf", "float32", 10**9)
    (tmp_path / "hf/generation_config.json").unlink()
    path = tmp_path / "hf/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": end}))
    with opened(str(tmp_path / "hf"), "cpu") as found:
        pass
    assert found.eos_ids == (generator.eos_ids if end else frozenset())
    assert found.generate(["Once"], Sampling(max_new_tokens=3))[0].n_tokens <= 3
    path.write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is no JSON"), opened(str(tmp_path / "hf"), "cpu"):
        pass


def test_rows_of_the_embedding_without_a_token_are_never_chosen(
    parameters: params.Params, work: Path, tmp_path: Path
) -> None:
    size = vocabulary.vocab_size(work / "data/tokenizer")
    padded = made(parameters, tmp_path / "litgpt", work / "data/tokenizer", vocab_size=size + 50)
    with torch.no_grad():
        padded.model.lm_head.weight[size:] *= 50  # each is the likeliest by far wherever its logit is positive
    for sampling in (GREEDY, Sampling(temperature=1.0), Sampling(top_k=5)):
        rows = [padded.row(padded.encode(prompt), sampling, prompt, n_logprobs=5) for prompt in PROMPTS]
        batch = padded.batch()
        batch.add(rows)
        while batch.rows:
            batch.step()
        chosen = [
            token for row in rows for choice in row.choices for token in (choice.token, choice.alternatives[0][0])
        ]
        assert len(chosen) > 50 and max(chosen) < size


# --- text as it comes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_words(tmp_path_factory: pytest.TempPathFactory, parameters: params.Params, work: Path) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    kind = parameters.tokenizer.model_copy(update={"kind": "bytes", "vocab_size": None})
    tokenizer.build(kind, work / "data/clean", folder)
    return vocabulary.load(folder)


@settings(max_examples=50, deadline=None)
@given(text=st.text("aé你🙂 \n\N{ZERO WIDTH JOINER}👨‍👩‍👧", max_size=30))
def test_pieces_are_whole_characters_and_make_up_the_text(byte_words: Tokenizer, text: str) -> None:
    spelling = Spelling(byte_words, byte_words.encode("Once").ids, ())
    pieces = [spelling.add(token) for token in byte_words.encode(text).ids]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) + spelling.rest() == text


def test_bytes_that_are_no_text_are_shown_as_such_and_do_not_hold_up_the_rest(byte_words: Tokenizer) -> None:
    spelling = Spelling(byte_words, byte_words.encode("x").ids, ())
    pieces = [spelling.add(token) for token in (0xE4, 0xBD, ord("a"), ord("b"), 0xF0)]
    assert pieces[:4] == ["", "", "\N{REPLACEMENT CHARACTER}a", "b"]
    assert spelling.rest() == "\N{REPLACEMENT CHARACTER}"


@settings(max_examples=50, deadline=None)
@given(text=st.text("ab.\n", max_size=25), stop=st.text("ab.\n", min_size=1, max_size=4))
def test_text_ends_before_a_stop_string_and_none_of_it_is_shown(byte_words: Tokenizer, text: str, stop: str) -> None:
    spelling = Spelling(byte_words, byte_words.encode(stop[:1]).ids, (stop,))
    shown = ""
    for token in byte_words.encode(text).ids:
        shown += spelling.add(token)
        assert text.partition(stop)[0].startswith(shown)
        if spelling.stopped:
            break
    else:
        shown += spelling.rest()
    assert shown == text.partition(stop)[0]
    assert spelling.stopped == (stop in text)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_empty_prompt_is_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        generator.generate(["Once", ""], GREEDY)


def test_bytes_that_are_no_text_are_refused(generator: Generator) -> None:
    typed = b"caf\xe9".decode("utf-8", "surrogateescape")  # as Python hands over what a terminal sends
    with pytest.raises(UserError, match=r"'caf\\udce9' is not UTF-8"):
        generator.generate([typed], GREEDY)
    with pytest.raises(UserError, match=r"stop = .* in UTF-8"):
        Sampling(stop=("the end", typed))


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(generator: Generator) -> None:
    prompt = "word " * 100
    with pytest.raises(UserError, match=f"has {len(generator.encode(prompt))} tokens; the model's context is 64"):
        generator.generate([prompt], GREEDY)


def test_a_prompt_that_leaves_room_for_one_token_gets_one(generator: Generator) -> None:
    prompt = generator.tokenizer.decode(generator.encode("a b " * 100)[: generator.context - 1])
    assert len(generator.encode(prompt)) == generator.context - 1
    assert generator.generate([prompt], GREEDY)[0].n_tokens == 1


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_characters_without_a_token_are_named(generator: Generator, tmp_path: Path, unknown: str | None) -> None:
    folder = shutil.copytree(generator.tokenizer_folder, tmp_path / "litgpt")
    letters = {letter: i for i, letter in enumerate("abc ")} | {"<|endoftext|>": 4} | ({unknown: 5} if unknown else {})
    words = Tokenizer(models.BPE(letters, [], unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.add_special_tokens(["<|endoftext|>"])
    words.save(str(folder / "tokenizer.json"))
    small = Generator.open(folder)
    assert small.encode("ab c") == [0, 1, 3, 2]
    with pytest.raises(UserError, match=r"no token for: \['x', '你'\]"):
        small.generate(["ab x你 c"], GREEDY)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    parameters: params.Params, work: Path, tmp_path: Path
) -> None:
    checkpoint_folder.save(build.build(parameters.model, 100), tmp_path / "litgpt", work / "data/tokenizer")
    with pytest.raises(UserError, match="the tokenizer has 512 tokens, the model 128"):
        Generator.open(tmp_path / "litgpt")


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("code in a checkpoint was run",))


def test_folders_that_hold_no_sound_model_are_refused(generator: Generator, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return shutil.copytree(generator.tokenizer_folder, tmp_path / name)

    short = broken("short") / "lit_model.pth"
    short.write_bytes(short.read_bytes()[:-5000])
    torch.save({"lm_head.weight": _Code()}, broken("code") / "lit_model.pth")
    (broken("pickle") / "lit_model.pth").write_bytes(pickle.dumps({"lm_head.weight": _Code()}))
    (broken("lost") / "lit_model.pth").unlink()
    (broken("mute") / "tokenizer.json").unlink()
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("short", "is damaged"),
        ("code", "holds more than tensors"),
        ("pickle", "lit_model.pth"),
        ("lost", "lit_model.pth is missing"),
        ("mute", "tokenizer.json is no tokenizer"),
        ("empty", "holds no model"),
        ("absent", "is no folder"),
    ):
        with pytest.raises(UserError, match=words), opened(str(tmp_path / name), "cpu"):
            pass
