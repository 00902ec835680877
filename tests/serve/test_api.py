"""The API, asked by OpenAI's own client and by plain HTTP: what it answers is what the model writes by itself."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pipeline.errors import UserError
from pipeline.generate.batch import Batch, Row
from pipeline.generate.chat import Chat
from pipeline.generate.generation import Generator
from pipeline.generate.inspection import inspect
from pipeline.generate.sampling import Sampling
from pipeline.serve.listen import Listen
from pipeline.tokens.chat_template import ChatTemplate
from tests.serve.conftest import Gate, Serve, Serving, until

PROMPT = "Once upon a time"
TURNS = [{"role": "user", "content": "the dog"}]


@pytest.fixture
def serving(serve: Serve, base: Generator) -> Serving:
    return serve(base)


def client(serving: Serving, token: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serving.address}/v1", api_key=token, max_retries=0)


def ask(serving: Serving, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(serving.address + path, content=content, headers=headers, timeout=60)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_client_lists_the_model(serving: Serving) -> None:
    assert [model.id for model in client(serving).models.list()] == ["tiny"]
    assert client(serving).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'; here is 'tiny'"):
        client(serving).models.retrieve("gpt")


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_completion_is_what_generate_writes_whole_and_streamed(serving: Serving, temperature: float) -> None:
    sampling = Sampling(max_new_tokens=20, temperature=temperature, top_p=0.9, seed=5, stop=("zebra", "\n\n"))
    expected = serving.generator.generate([PROMPT], sampling)[0]
    settings: dict[str, Any] = {
        **{"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "temperature": temperature, "top_p": 0.9, "seed": 5},
        **{"stop": ["zebra", "\n\n"]},
    }
    whole = client(serving).completions.create(**settings)
    assert whole.choices[0].text == expected.text
    assert whole.choices[0].finish_reason == ("length" if expected.finish_reason == "length" else "stop")
    assert whole.usage is not None and whole.usage.completion_tokens == expected.n_tokens
    assert whole.usage.prompt_tokens == len(serving.generator.encode(PROMPT))
    chunks = list(client(serving).completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected.text
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert len(chunks) > 5 and not chunks[-1].choices and chunks[-1].usage == whole.usage


def test_a_chat_is_what_moe_chat_writes_whole_and_streamed(serve: Serve, talking: Generator) -> None:
    serving = serve(talking)
    expected = "".join(Chat(talking, Sampling(max_new_tokens=15, seed=3)).say("the dog"))
    settings: Any = {"model": "tiny", "messages": TURNS, "max_completion_tokens": 15, "temperature": 0.8, "seed": 3}
    whole = client(serving).chat.completions.create(**settings)
    assert (whole.choices[0].message.role, whole.choices[0].message.content) == ("assistant", expected)
    chunks = list(client(serving).chat.completions.create(**settings, stream=True))
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    in_parts = [{"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "dog"}]}]
    again = client(serving).chat.completions.create(**settings | {"messages": in_parts})
    assert again.choices[0].message.content == expected


def test_many_prompts_each_have_n_answers_of_seeds_of_their_own(serving: Serving) -> None:
    given = client(serving).completions.create(model="tiny", prompt=["The", "A cat"], n=2, seed=7, max_tokens=8)
    seeds = [Sampling(max_new_tokens=8, temperature=1, seed=seed) for seed in (7, 8)]
    expected = [serving.generator.generate([prompt], s)[0].text for prompt in ("The", "A cat") for s in seeds]
    assert [choice.text for choice in given.choices] == expected
    assert [choice.index for choice in given.choices] == [0, 1, 2, 3]
    assert given.usage is not None
    assert given.usage.prompt_tokens == sum(len(serving.generator.encode(prompt)) for prompt in ("The", "A cat"))


def test_tokens_may_be_given_in_place_of_text_and_no_seed_is_another_text_each_time(serving: Serving) -> None:
    ids = serving.generator.encode(PROMPT)
    greedy = client(serving).completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=9)
    assert greedy.choices[0].text == serving.generator.generate_ids([ids], Sampling(9, 0))[0].text
    texts = {client(serving).completions.create(model="tiny", prompt=[ids]).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_logprobs_come_in_both_shapes_and_the_same_streamed(serve: Serve, talking: Generator) -> None:
    serving = serve(talking)
    row = talking.row(talking.encode(PROMPT), Sampling(6, 0), n_logprobs=2)
    batch = talking.batch()
    batch.add([row])
    while batch.rows:
        batch.step()
    settings: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 2}
    found = client(serving).completions.create(**settings).choices[0]
    assert found.logprobs is not None and found.logprobs.tokens is not None
    assert "".join(found.logprobs.tokens) == found.text
    assert found.logprobs.token_logprobs == pytest.approx([choice.logprob for choice in row.choices])
    assert found.logprobs.text_offset is not None and found.logprobs.top_logprobs is not None
    assert [found.text[at : at + 1] for at in found.logprobs.text_offset] == [t[:1] for t in found.logprobs.tokens]
    for top, choice in zip(found.logprobs.top_logprobs, row.choices, strict=True):
        names = [talking.name(token) for token, _ in choice.alternatives]  # parts of characters may share one
        assert list(top) == list(dict.fromkeys(names))
        assert max(top.values()) == pytest.approx(choice.alternatives[0][1])
    pieces = [c.choices[0].logprobs for c in client(serving).completions.create(**settings, stream=True)]
    assert [t for piece in pieces if piece for t in piece.tokens or []] == found.logprobs.tokens
    assert [at for piece in pieces if piece for at in piece.text_offset or []] == found.logprobs.text_offset
    said = client(serving).chat.completions.create(
        model="tiny", messages=TURNS, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    content = said.choices[0].logprobs and said.choices[0].logprobs.content
    assert content and all(len(token.top_logprobs) == 3 for token in content)
    assert [token.logprob for token in content] == [token.top_logprobs[0].logprob for token in content]  # greedy
    assert any(token.bytes for token in content)  # of a part of a character they are not given
    assert all(bytes(token.bytes).decode() == token.token for token in content if token.bytes is not None)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_streams(serving: Serving) -> None:
    body = json.dumps({"prompt": PROMPT, "max_tokens": 5, "temperature": 0, "stream": True})
    command = ["curl", "-sN", f"{serving.address}/v1/completions", "-d", body]
    lines = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    texts = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines[:-2]]
    assert "".join(texts) == serving.generator.generate([PROMPT], Sampling(5, 0))[0].text


def test_requests_at_once_are_answered_as_one_after_another(serving: Serving) -> None:
    def complete(i: int) -> str:
        asked = {"prompt": PROMPT[: 4 + i], "max_tokens": 20 + i, "temperature": i / 10, "seed": i}
        return str(ask(serving, "/v1/completions", asked).json()["choices"][0]["text"])

    alone = [complete(i) for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(complete, range(12))) == alone


def test_a_text_or_conversation_is_inspected(serve: Serve, talking: Generator) -> None:
    serving = serve(talking)
    found = ask(serving, "/v1/inspect", {"text": PROMPT, "alternatives": 3}).json()
    expected = inspect(talking, talking.encode(PROMPT), 3)
    assert (found["layers"], found["n_expert"]) == (expected.layers, expected.n_expert)
    for given, token in zip(found["tokens"], expected.tokens, strict=True):
        assert given["text"] == token.text and len(given["alternatives"]) == len(token.alternatives)
        assert given["probability"] == (token.probability and pytest.approx(token.probability, rel=1e-3))
        assert [[e["expert"] for e in layer] for layer in given["experts"]] == [
            [e for e, _ in i] for i in token.experts
        ]
    turns = [*TURNS, {"role": "assistant", "content": "said no"}]
    ids = ChatTemplate(talking.tokenizer_folder).marked(turns)[0]
    said = ask(serving, "/v1/inspect", {"messages": turns}).json()
    assert len(said["tokens"]) == len(ids)
    assert "".join(token["text"] for token in said["tokens"]).count("<|endoftext|>") == 2


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "the body is no JSON in UTF-8"),
        (b"\xff", "the body is no JSON in UTF-8"),
        (b"[" * 100_000, "the body is no JSON in UTF-8"),
        ([1], r"the body is \[1\]; send one JSON object"),
        ({}, "prompt: missing; give it"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "the prompt is empty"),
        ({"prompt": [10**6]}, "prompt: a token out of range; allowed: 0 to"),
        ({"prompt": ["The", 3]}, r"prompt\.1 = 3: input should be a valid string"),
        ({"prompt": "the " * 200}, "the model's context is 64, so at most 63"),
        ({"prompt": "\ud800"}, "is not UTF-8"),
        ({"prompt": PROMPT, "temperature": "hot"}, 'temperature = "hot": input should be a valid number'),
        ({"prompt": PROMPT, "temperature": -1}, r"temperature = -1(\.0)?; allowed: 0 \(greedy\) or more"),
        ({"prompt": PROMPT, "top_p": 0}, "top_p = 0.*; allowed: more than 0, at most 1"),
        ({"prompt": PROMPT, "max_tokens": 0}, "max_tokens = 0: input should be greater than or equal to 1"),
        ({"prompt": PROMPT, "max_tokens": True}, "max_tokens = true: input should be a valid integer"),
        ({"prompt": PROMPT, "stop": [""]}, "stop = .*; allowed: texts of a character or more"),
        ({"prompt": PROMPT, "n": 17}, "n = 17: input should be less than or equal to 16"),
        ({"prompt": ["The"] * 9, "n": 2}, "18 texts at once; at most 16"),
        ({"prompt": PROMPT, "frequency_penalty": 1}, "frequency_penalty = 1: input should be less than or equal to 0"),
        ({"prompt": PROMPT, "best_of": 3}, "best_of: not supported here; known: model, max_tokens"),
        ({"prompt": PROMPT, "stream_options": {"x": 1}}, r"stream_options\.x: not supported here"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_said_in_words(serving: Serving, body: Any, words: str) -> None:
    answer = ask(serving, "/v1/completions", body)
    assert answer.status_code == 400
    with pytest.raises(UserError, match=words):
        raise UserError(answer.json()["error"]["message"])


def test_null_is_as_if_it_were_not_there(serving: Serving) -> None:
    body = {"prompt": "The", "stop": None, "seed": None, "max_tokens": 3, "best_of": None, "stream_options": None}
    assert ask(serving, "/v1/completions", body).status_code == 200


def test_chats_need_a_template_and_roles_it_knows(serve: Serve, base: Generator, talking: Generator) -> None:
    with pytest.raises(openai.BadRequestError, match="tiny has no chat template: it goes on from a text"):
        client(serve(base)).chat.completions.create(model="tiny", messages=TURNS)  # type: ignore[arg-type]
    serving = serve(talking)
    for messages, words in (
        ([], "messages"),
        ([{"role": "wizard", "content": "x"}], r"messages\.0\.role = .wizard.: input should be 'system'"),
        ([{"role": "user"}], r"messages\.0\.content: missing"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], r"messages\.0\.content"),
        ([{"role": "user", "content": "the dog " * 100}], "the model's context is 64"),
        ([{"role": "user", "content": "\ud800"}], "is not UTF-8"),
    ):
        answer = ask(serving, "/v1/chat/completions", {"messages": messages})
        assert answer.status_code == 400
        with pytest.raises(UserError, match=words):
            raise UserError(answer.json()["error"]["message"])
    assert ask(serving, "/v1/inspect", {}).status_code == 400


def test_another_model_path_or_method_and_a_long_body_are_refused(serving: Serving) -> None:
    assert (
        ask(serving, "/v1/completions", {"prompt": "The", "model": "gpt"}).json()["error"]["code"] == "model_not_found"
    )
    assert ask(serving, "/v1/nothing", {}).status_code == 404
    assert httpx.get(f"{serving.address}/v1/completions").status_code == 405
    assert ask(serving, "/v1/completions", b" " * 2**20 + b" ").status_code == 413


def test_a_context_that_is_too_long_has_the_code_that_clients_look_for(serving: Serving) -> None:
    error = ask(serving, "/v1/completions", {"prompt": "the " * 200}).json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")


def test_other_hosts_other_sites_and_wrong_tokens_are_kept_out(serve: Serve, base: Generator) -> None:
    open_to_all = serve(base)
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}, {"host": "["}):
        assert ask(open_to_all, "/v1/completions", {"prompt": "The"}, **headers).status_code == 403
    port = open_to_all.address.rpartition(":")[2]
    own = {"host": f"localhost:{port}", "origin": f"http://localhost:{port}"}
    assert ask(open_to_all, "/v1/completions", {"prompt": "The", "max_tokens": 2}, **own).status_code == 200
    locked = serve(base, host="0.0.0.0", token="0123456789abcdef")
    assert httpx.get(f"{locked.address}/").status_code == httpx.get(f"{locked.address}/health").status_code == 200
    for token in ("none", "0123456789abcdee", "0123456789abcdef0"):
        assert ask(locked, "/v1/inspect", {"text": "The"}, authorization=f"Bearer {token}").status_code == 401
    with pytest.raises(openai.AuthenticationError, match="send the server's token"):
        client(locked).models.list()
    assert client(locked, "0123456789abcdef").models.list().data[0].id == "tiny"


def test_a_host_that_others_reach_needs_a_token() -> None:
    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0: others could use the model; set .* MOE_SERVE_TOKEN"):
        Listen(host="0.0.0.0")
    with pytest.raises(UserError, match="MOE_SERVE_TOKEN is shorter than 16"):
        Listen(host="0.0.0.0", token="secret")
    with pytest.raises(UserError, match="--port 70000; allowed: 0"):
        Listen(port=70_000)
    with pytest.raises(UserError, match="--queue 0; allowed: 1 or more"):
        Listen(queue=0)


# --- many at once, and what goes wrong --------------------------------------------------------------------------------


def test_a_full_queue_answers_429_and_takes_more_once_there_is_room(serve: Serve, base: Generator, gate: Gate) -> None:
    serving = serve(base, batch=1, queue=2)
    with ThreadPoolExecutor(4) as pool:
        body = {"prompt": "The", "max_tokens": 4, "temperature": 0}
        written = pool.submit(ask, serving, "/v1/completions", body)
        until(lambda: serving.engine._batch.rows)
        waiting = [pool.submit(ask, serving, "/v1/completions", body) for _ in range(2)]
        until(lambda: len(serving.engine._waiting) == 2)
        refused = ask(serving, "/v1/completions", body)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        with pytest.raises(openai.RateLimitError, match="too many requests wait"):
            client(serving).completions.create(model="tiny", prompt="The")
        assert ask(serving, "/v1/inspect", {"text": "The"}).status_code == 429
        gate.release(1000)
        texts = [future.result().json()["choices"][0]["text"] for future in (written, *waiting)]
    assert len(set(texts)) == 1
    assert ask(serving, "/v1/completions", body).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_whose_client_goes_away_stops(
    serve: Serve, base: Generator, gate: Gate, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    serving = serve(base)
    rows: list[Row] = []
    submit = serving.engine.submit
    monkeypatch.setattr(serving.engine, "submit", lambda new, stream: rows.extend(new) or submit(new, stream))
    body = {"prompt": PROMPT, "stream": stream, "temperature": 1, "seed": 7, "max_tokens": 40}
    with httpx.Client(timeout=60) as own:
        if stream:
            gate.release(3)
            with own.stream("POST", f"{serving.address}/v1/completions", json=body) as answer:
                assert next(answer.iter_lines()).startswith("data: ")
        else:
            with pytest.raises(httpx.ReadTimeout):
                own.post(f"{serving.address}/v1/completions", json=body, timeout=0.3)
    until(lambda: rows and not serving.engine._job)
    gate.release(1000)
    until(lambda: not serving.engine._batch.rows)
    (row,) = rows
    assert row.finish_reason is None and row.n_tokens <= 5
    assert ask(serving, "/v1/completions", {"prompt": "The", "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_that_fails_fails_what_it_worked_on_and_goes_on(
    serve: Serve, base: Generator, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    serving = serve(base)
    step = Batch.step
    with monkeypatch.context() as patched:
        patched.setattr(Batch, "step", lambda batch: 1 / 0)
        answer = ask(serving, "/v1/completions", {"prompt": "The", "stream": stream})
        if stream:
            chunk = json.loads(answer.text.partition("\n\n")[0].removeprefix("data: "))
            assert chunk["error"]["message"] == "the model failed; see the server's own messages"
        else:
            assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert Batch.step is not step
    assert ask(serving, "/v1/completions", {"prompt": "The", "max_tokens": 2}).status_code == 200


def test_what_is_asked_and_answered_is_written_nowhere(
    serve: Serve, base: Generator, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    serving = serve(base)
    answer = ask(serving, "/v1/completions", {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}).json()
    ask(serving, "/v1/completions", {"prompt": PROMPT, "stop": 3})
    ask(serving, "/v1/inspect", {"text": PROMPT})
    out = "".join(capfd.readouterr())
    assert PROMPT not in out and answer["choices"][0]["text"] not in out
