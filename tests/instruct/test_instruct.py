"""The stage instruct: templates, marks on what is trained, blocks, and what is named, cut and dropped."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

from pipeline import params
from pipeline.errors import UserError
from pipeline.instruct.instruct import instruct
from pipeline.params.instruct import InstructBundled, InstructLocal
from pipeline.storyteller.instructions import instructions, met
from pipeline.tokens import tokenizer as vocabulary
from pipeline.tokens.chat_template import ChatTemplate
from pipeline.tokens.flags import FIRST, ID, LOSS
from pipeline.tokens.store import TokenStore
from tests.train.small import ROOT

T = 64  # the model's context


def talk(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}


def pairs(count: int) -> list[dict[str, Any]]:
    return [talk(f"Say {n}.", f"It is {n}, the {'big ' * (n % 4)}one.") for n in range(count)]


def wanted(path: Path, **chosen: Any) -> InstructLocal:
    raw = yaml.safe_load((ROOT / "configs/instruct/local.yaml").read_text(encoding="utf-8"))
    return InstructLocal(**(raw | {"watch": "w", "path": str(path), "val_fraction": 0.2} | chosen))


def written(place: Path, records: list[Any]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "talks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return place / "talks.jsonl"


def whole(folder: Path) -> np.ndarray:
    store = TokenStore(folder)
    assert store.flags
    return store.read(0, store.n_tokens)


def test_no_conversation_leaves_its_block_and_just_the_answers_are_trained(checkpoint: Path, tmp_path: Path) -> None:
    records = pairs(40)
    report = instruct(wanted(written(tmp_path, records)), checkpoint, tmp_path / "out")
    encoder, eos = vocabulary.load(checkpoint), vocabulary.eos_id(checkpoint)
    found = []
    for split in ("train", "val"):
        tokens = whole(tmp_path / "out" / split)
        assert len(tokens) % T == 1
        assert report[split]["trained_tokens"] == np.count_nonzero(tokens & LOSS)
        for begin in range(0, len(tokens) - 1, T):
            block = tokens[begin : begin + T]
            starts = [*np.flatnonzero(block & FIRST), T]
            assert starts[0] == 0
            for start, end in itertools.pairwise(starts):
                if not (block[start:end] & LOSS).any():
                    assert (block[start:end] & ID == eos).all()  # filling
                    continue
                trained = block[start:end][(block[start:end] & LOSS) > 0] & ID
                question = block[start:end][(block[start:end] & LOSS) == 0] & ID
                assert trained[-1] == eos
                found.append((encoder.decode(question.tolist()), encoder.decode(trained[:-1].tolist())))
    expected = [tuple(turn["content"] for turn in record["messages"]) for record in records]
    assert sorted(found) == sorted((f"Instruct: {question}\nOutput:", answer) for question, answer in expected)


def test_ids_are_those_of_transformers_and_of_litgpts_prompt_style(checkpoint: Path, tmp_path: Path) -> None:
    instruct(wanted(written(tmp_path, pairs(20))), checkpoint, tmp_path / "out")
    folder = tmp_path / "out" / "tokenizer"
    template, theirs = ChatTemplate(folder), AutoTokenizer.from_pretrained(folder)
    turns = talk("Tell a story.", "Once, a fox ran.", "And then?", "It slept.")["messages"]
    ids, trained = template.marked(turns)
    assert ids.tolist() == theirs.apply_chat_template(turns, return_dict=False)
    prompt = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert template.ids(turns[:1]) == prompt
    assert theirs.decode(ids[trained]) == "Once, a fox ran.<|endoftext|>It slept.<|endoftext|>"
    from litgpt.prompts import load_prompt_style

    style = load_prompt_style(folder).apply("Tell a story.")
    assert vocabulary.load(folder).encode(style, add_special_tokens=False).ids == prompt


def test_special_tokens_in_a_turn_are_text(checkpoint: Path, tmp_path: Path) -> None:
    instruct(wanted(written(tmp_path, pairs(20))), checkpoint, tmp_path / "out")
    template, eos = ChatTemplate(tmp_path / "out" / "tokenizer"), vocabulary.eos_id(checkpoint)
    ids, trained = template.marked(talk("What is <|endoftext|>?", "It is <|endoftext|>!")["messages"])
    assert (ids == eos).sum() == 1 and ids[-1] == eos and trained[-1]
    decoded = vocabulary.load(checkpoint).decode(ids[trained][:-1].tolist(), skip_special_tokens=False)
    assert decoded == "It is <|endoftext|>!"


def test_a_template_beside_the_tokenizer_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(checkpoint, tmp_path / "own")
    own = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "own" / "chat_template.jinja").write_text(own + "{% if add_generation_prompt %}[assistant]{% endif %}")
    instruct(wanted(written(tmp_path, pairs(20))), tmp_path / "own", tmp_path / "out")
    folder = tmp_path / "out" / "tokenizer"
    assert (folder / "chat_template.jinja").read_text().startswith("{% for m in messages %}[")
    assert not (folder / "prompt_style.yaml").exists()
    ids, trained = ChatTemplate(folder).marked(talk("a", "b")["messages"])
    assert vocabulary.load(folder).decode(ids[trained].tolist(), skip_special_tokens=False) == "b<|endoftext|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    instruct(wanted(written(tmp_path, pairs(20))), checkpoint, tmp_path / "out")
    folder = tmp_path / "out" / "tokenizer"
    (folder / "chat_template.jinja").write_text(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(UserError, match="writes a turn otherwise once others follow"):
        ChatTemplate(folder).marked(talk("a", "b", "c", "d")["messages"])


def test_a_long_conversation_is_cut_at_a_turn_and_one_that_never_fits_is_dropped(
    checkpoint: Path, tmp_path: Path
) -> None:
    long = talk(*(f"word {n} " * 4 for n in range(10)))
    records = [*pairs(30), long, talk("Tell it all.", "so long " * 100)]
    report = instruct(wanted(written(tmp_path, records)), checkpoint, tmp_path / "out")
    assert report["dropped"] == {"longer than the model's context of 64 tokens": 1}
    (turns,) = report["cut"].values()
    assert turns % 2 == 0 and 0 < turns < 10
    assert report["train"]["conversations"] + report["val"]["conversations"] == 31


def test_plain_texts_follow_each_other_and_all_their_tokens_are_trained(checkpoint: Path, tmp_path: Path) -> None:
    texts = [f"Once there was a fox with {n} cubs. " * 9 for n in range(12)]
    report = instruct(wanted(written(tmp_path, [{"text": text} for text in texts])), checkpoint, tmp_path / "out")
    encoder, eos = vocabulary.load(checkpoint), vocabulary.eos_id(checkpoint)
    expected = sum(len(encoder.encode(text, add_special_tokens=False).ids) + 1 for text in texts)
    assert sum(report[split]["trained_tokens"] for split in ("train", "val")) == expected
    tokens = whole(tmp_path / "out" / "train")
    assert (tokens[: report["train"]["tokens"]] & LOSS).all()
    after = np.flatnonzero(tokens & ID == eos)[:-1] + 1
    assert (tokens[after] & FIRST).all()


def test_what_is_held_out_stays_so_when_others_come(checkpoint: Path, tmp_path: Path) -> None:
    def held_out(count: int) -> set[str]:
        instruct(wanted(written(tmp_path / str(count), pairs(count))), checkpoint, tmp_path / str(count) / "out")
        return set((tmp_path / str(count) / "out" / "val.jsonl").read_text().splitlines())

    assert held_out(40) < held_out(80)


def test_parquet_gives_what_json_lines_give(checkpoint: Path, tmp_path: Path) -> None:
    records = pairs(30)
    instruct(wanted(written(tmp_path / "lines", records)), checkpoint, tmp_path / "one")
    (tmp_path / "columns").mkdir()
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "columns" / "talks.parquet")
    instruct(wanted(tmp_path / "columns"), checkpoint, tmp_path / "other")
    for split in ("train", "val"):
        assert (whole(tmp_path / "one" / split) == whole(tmp_path / "other" / split)).all()


def test_bad_records_are_named_with_file_and_line(checkpoint: Path, tmp_path: Path) -> None:
    path = written(tmp_path, [*pairs(20), {"title": "x"}, *pairs(1), talk("only a question")])
    words = r"2 records are no conversations:\n  talks, line 21: has title; .*\n  talks, line 23: has no answer"
    with pytest.raises(UserError, match=words):
        instruct(wanted(path), checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = instruct(wanted(path, bad_records="drop"), checkpoint, tmp_path / "out")
    assert report["dropped"] == {"no conversation": 2, "equal to another": 1}


def test_errors_of_a_source_name_the_section(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^instruct\.path = .*no such file or folder"):
        instruct(wanted(tmp_path / "none.jsonl"), checkpoint, tmp_path / "out")


def test_text_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "talks.txt").write_text("Hello")
    with pytest.raises(UserError, match=r"talks.txt: records come in \.jsonl, \.json or \.parquet files"):
        instruct(wanted(tmp_path / "talks.txt"), checkpoint, tmp_path / "out")


def test_nothing_held_out_is_an_error_with_what_to_raise(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no conversation is left for val .* raise instruct.val_fraction \(now 0\)"):
        instruct(wanted(written(tmp_path, pairs(10)), val_fraction=0), checkpoint, tmp_path / "out")


# --- the bundled instructions -------------------------------------------------------------------------------------


def test_every_bundled_answer_meets_its_constraints() -> None:
    made = [each for each in instructions(1000, seed=1) if each.messages]
    for each in made:
        missed = [name for name, is_met in met(each.constraints, each.messages[-1]["content"]).items() if not is_met]
        assert not missed, (missed, each)
    asked = {name for each in made for name in each.constraints}
    assert asked == {"hero", "kind", "thing", "place", "helper", "mood", "ending", "length", "mentions"}


def test_another_answer_misses_constraints() -> None:
    made = [each for each in instructions(200, seed=1) if "thing" in each.constraints]
    shares = [
        sum(met(one.constraints, other.messages[-1]["content"]).values()) / len(one.constraints)
        for one, other in itertools.pairwise(made)
    ]
    assert sum(shares) / len(shares) < 0.35


def test_instructions_depend_on_seed_and_place_alone(checkpoint: Path, tmp_path: Path) -> None:
    assert list(instructions(30, seed=3)) == list(instructions(60, seed=3))[:30]
    assert list(instructions(30, seed=3)) != list(instructions(30, seed=4))
    raw = yaml.safe_load((ROOT / "configs/instruct/bundled.yaml").read_text(encoding="utf-8"))
    chosen = InstructBundled(**(raw | {"conversations": 300, "val_fraction": 0.2}))
    with pytest.raises(UserError, match=r"no conversation is left"):  # no story fits into 64 tokens
        instruct(InstructBundled(**(raw | {"conversations": 3})), checkpoint, tmp_path / "out")
    report = instruct(chosen, checkpoint, tmp_path / "out")
    assert report["train"]["texts"] > 30
    assert isinstance(params.validate(yaml.safe_load((ROOT / "params.yaml").read_text())).instruct, InstructBundled)
