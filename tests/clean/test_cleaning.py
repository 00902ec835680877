"""Cleaning: every byte is accounted for, and the same documents give the same bytes on every path."""

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import console, params
from pipeline.clean import characters, cleaning, duplicates, rules
from pipeline.clean.rules import judge
from pipeline.clean.statistics import summary
from pipeline.cli.compose import compose
from pipeline.documents import shards
from pipeline.download import sources
from pipeline.errors import UserError
from pipeline.hashing import file_sha256
from pipeline.storyteller.stories import stories

ROOT = Path(__file__).parents[2]
SAMPLE = [story.text for story in stories(60, 3)]
NEAR = {"enabled": True, "shingle_words": 3, "bands": 16, "rows": 4, "threshold": 0.7}


def preset(**changes: Any) -> params.Clean:
    values = yaml.safe_load((ROOT / "configs/clean/default.yaml").read_text(encoding="utf-8"))
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return params.Clean(**values)


def raw(folder: Path, documents: list[str], splits: Sequence[str | None] | None = None, pieces: int = 1) -> Path:
    """A raw folder as download leaves it, in so many shards."""
    folder.mkdir(parents=True)
    rows = range(len(documents))
    table = pa.table(
        {
            "row": rows,
            "text": documents,
            "source": ["book"] * len(documents),
            "split": splits or [None] * len(documents),
        },
        schema=sources.SCHEMA,
    )
    for number, part in enumerate(np.array_split(np.arange(len(documents)), pieces)):
        pq.write_table(table.take(pa.array(part)), folder / f"part-{number:05d}.parquet", row_group_size=17)
    shards = [{"name": path.name, "sha256": file_sha256(path)} for path in sorted(folder.glob("*.parquet"))]
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    return folder


def run(
    folder: Path, documents: list[str], splits: Sequence[str | None] | None = None, **changes: Any
) -> dict[str, Any]:
    source = raw(folder / f"raw-{len(list(folder.glob('raw-*')))}", documents, splits)
    return cleaning.clean(preset(**changes), source, folder / "clean", folder / "plots")


def side(folder: Path, name: str) -> list[str]:
    tables = list(shards.tables(folder / "clean" / name))
    return pa.concat_tables(tables).column("text").to_pylist() if tables else []


def everything(folder: Path) -> list[str]:
    return side(folder, "train") + side(folder, "val")


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(path.relative_to(folder).as_posix().encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


def rewritten(text: str, **changes: Any) -> str:
    return judge(pa.array([text]), preset(**changes)).field("text").to_pylist()[0]


def reason(text: str, **changes: Any) -> str:
    number = judge(pa.array([text]), preset(**changes)).field("reason").to_pylist()[0]
    return rules.RULES[number - 1].name if number else "kept"


# --- one document -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damaged", "repaired"),
    [
        ("â€œHiâ€\x9d, she said. Itâ€™s fine â€” reallyâ€¦", "“Hi”, she said. It’s fine — really…"),
        ("â€œHi!â€\n\nThen â€œHo!â€ said Tim, â€œgoâ€.", "“Hi!”\n\nThen “Ho!” said Tim, “go”."),
        ("schÃ¶n, cafÃ©, naÃ¯ve", "schön, café, naïve"),
        ('“It’s” already… fine — and she\'s "quoted"', '“It’s” already… fine — and she\'s "quoted"'),
        ("Smörgåsbord, señor, ¿qué? 你好，世界。", "Smörgåsbord, señor, ¿qué? 你好，世界。"),
        ("e\u0301", "é"),
        ("a\tb  c \r\n\r\n\r\n\r\n d\u00a0e\u200bf\x00g\ufeff", "a\tb  c\n\n\n\n d efg"),
    ],
)
def test_damage_is_repaired_and_the_rest_left_alone(damaged: str, repaired: str) -> None:
    assert rewritten(damaged) == repaired


def test_personal_data_is_masked_and_numbers_are_not() -> None:
    text = "Write to anna.b+c@mail.example.org or +1 (555) 123-4567, 555-123-4567, 13812345678 from 192.168.0.254."
    assert rewritten(text, mask_personal_data=True) == "Write to [email] or [phone], [phone], [phone] from [ip]."
    addresses = "2001:db8:85a3:0:0:8a2e:370:7334, 2001:db8::1, fe80::1ff:fe23:4567:890a and 2001:db8:0:1::42."
    assert rewritten(addresses, mask_personal_data=True) == "[ip], [ip], [ip] and [ip]."
    numbers = (
        "In std::vector and bad::face at 10:30:15, "
        "In 1990-1995 she had 1,000,000 ants; 3.14159 on 2024-05-17 at 10:30; room 12345678901234, @home 256.1.1.300."
    )
    assert rewritten(numbers, mask_personal_data=True) == numbers

    for plain in ("+100 points, then +5 10 20.", "a[1]+1234 or x = y +3"):
        assert rewritten(plain, mask_personal_data=True) == plain


LAYOUTS = {
    "code": "def f(x):\n\tif x:\n        return x  # two  spaces\n\n\nclass C:\n    pass",
    "first line": "    indented code\n    and more",
    "table": "| name   | age |\n|--------|-----|\n| Tom    |   7 |\na\tb\t\tc",
    "hard break": "Roses are red,  \nviolets are blue.",
    "poem": "Little fox,\n    where do you run?\n\n\n        Home.",
    "paragraphs": "　　从前有一只狐狸。\n　　它住在森林里。",
    "Khmer": "ភាសា\u200bខ្មែរ\u200b abc",
    "Thai, Lao, Myanmar": "ไทย\u200bไทย ລາວ\u200bລາວ မြန်\u200bမာ",
    "joiners": "می\u200cخواهم क्\u200dष 👨\u200d👩\u200d👧 ❤\ufe0f",
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_and_characters_that_mean_something_stay(text: str) -> None:
    assert rewritten(text) == text


@pytest.mark.parametrize(
    ("text", "layout", "prose"),
    [
        ("a \t\nb\t \nc   \n \t \n d", "a\nb\nc  \n\n d", "a\nb\nc\n\nd"),
        ("\r\n \n  a\r\n\tb\rc\n", "  a\n\tb\nc", "a\nb\nc"),
        ("a\u200b\u200bb \u200bក\u200b\u200bd", "ab \u200bក\u200bd", "ab \u200bក\u200bd"),
        ("a  b\n\n\n\nc\u00a0!", "a  b\n\n\n\nc !", "a b\n\nc !"),
        (" \u3000\n", "", ""),
    ],
)
def test_what_each_way_to_tidy_does(text: str, layout: str, prose: str) -> None:
    assert rewritten(text, tidy_whitespace="none") == text
    assert rewritten(text) == layout
    assert rewritten(text, tidy_whitespace="prose") == prose


@settings(deadline=None, max_examples=150)
@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \t\n\r\u200b\u3000\u00a0ក")), max_size=60))
def test_rewritten_text_is_tidy_unicode_and_stays_so(text: str) -> None:
    layout, prose = rewritten(text), rewritten(text, tidy_whitespace="prose")
    for once in (layout, prose):
        assert once == once.rstrip() and not any(ord(c) < 32 and c not in "\n\t" for c in once)
    assert prose == prose.strip() and "\t" not in prose and " \n" not in prose and "\n " not in prose
    assert "  " not in prose and "\n\n\n" not in prose
    assert rewritten(layout, fix_encoding=False) == layout
    assert rewritten(prose, fix_encoding=False, tidy_whitespace="prose") == prose


@pytest.mark.parametrize(("name", "kept"), [("default", True), ("code", True), ("english", False), ("chinese", False)])
def test_each_preset_says_whether_layout_stays(name: str, kept: bool, tmp_path: Path) -> None:
    compose(tmp_path / "params.yaml", ROOT / "configs", [f"clean={name}"])
    text = LAYOUTS["code"]
    judged = judge(pa.array([text]), params.load(tmp_path / "params.yaml").clean)
    assert (judged.field("text").to_pylist()[0] == text) == kept


def test_a_rule_is_one_entry_of_one_table(tmp_path: Path) -> None:
    kinds = ["rewrite", "drop", "repeats", "blocked"]
    does = [[kind for kind in kinds if getattr(rule, kind)] for rule in rules.RULES]
    assert all(len(kind) == 1 for kind in does)
    assert does == sorted(does, key=lambda kind: kinds.index(kind[0]))
    report = run(tmp_path, SAMPLE, script="latin", quality={"enabled": True}, decontaminate_val=True)
    names = [rule.name for rule in rules.RULES]
    assert list(report["steps"]) == [name for name in names if name in report["steps"]]
    off = {"mask_personal_data", "too_long", "near_duplicates", "benchmark_overlap"}
    assert set(names) - set(report["steps"]) == off


@pytest.mark.parametrize(
    ("text", "expected", "changes"),
    [
        ("word " * 20, "kept", {}),
        ("too short", "too_short", {}),
        ("word " * 200, "too_long", {"max_chars": 500}),
        ("слово " * 20, "script", {"script": "latin"}),
        ("从前有一只小狐狸住在森林里。" * 8, "kept", {"script": "han"}),
        ("Once upon a time there was a fox. " * 4, "script", {"script": "han"}),
        ("a b c d e f g h i j " * 5, "quality_word_length", {"quality": {"enabled": True}}),
        ("#one #two #three # # and some more words here to fill up the document to length #a", "quality_symbols",
         {"quality": {"enabled": True}}),
        ("one " + " ".join(map(str, range(1000, 1020))), "quality_alphabetic_words", {"quality": {"enabled": True}}),
        ("This is a line of text.\nAnother line.\n" + "This is a line of text.\n" * 4, "quality_duplicate_lines",
         {"quality": {"enabled": True}}),
        ("buy it now " * 10 + "and some other words stand here", "quality_top_ngram", {"quality": {"enabled": True}}),
        (SAMPLE[0], "kept", {"quality": {"enabled": True}, "script": "latin"}),
    ],
)  # fmt: skip
def test_why_a_document_is_dropped(text: str, expected: str, changes: dict[str, Any]) -> None:
    assert reason(text, **changes) == expected


def test_quality_figures_agree_with_a_plain_computation() -> None:
    texts = [*SAMPLE[:6], "# x … one\none\n\ntwo two two two two two", "狐狸 fox 狐狸 fox 狐狸 fox", "", "…"]
    batch = characters.Characters(pa.array(texts))
    for number, text in enumerate(texts):
        lines = [line for line in text.split("\n") if line]
        assert characters.repeated_lines(batch)[number] == pytest.approx(1 - len(set(lines)) / max(1, len(lines)))
        folded = "".join(f" {c} " if "\u4e00" <= c <= "\u9fff" else c.lower() if c.isalnum() else " " for c in text)
        words = folded.split()
        triples = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
        covered = [triples.count(t) * sum(map(len, t)) for t in triples if triples.count(t) > 1]
        assert characters.top_ngram(batch, 3)[number] == pytest.approx(
            max(covered, default=0) / max(1, sum(map(len, words)))
        )
        tokens = text.split()
        found = rules._word_length(batch, preset(quality={"mean_word_length": [3.3, 4.4]}))
        mean = sum(map(len, tokens)) / max(1, len(tokens))
        assert found[number] == (not 3.3 <= mean <= 4.4)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_duplicates_go_and_the_first_stays(tmp_path: Path) -> None:
    changed = SAMPLE[1].replace("a", "a", 1) + " And then it rained."
    report = run(tmp_path, [*SAMPLE, SAMPLE[0], SAMPLE[0] + "  ", changed], near_duplicates=NEAR)
    assert sorted(everything(tmp_path)) == sorted(SAMPLE)
    assert report["steps"]["exact_duplicates"]["documents_dropped"] == 2
    assert report["steps"]["near_duplicates"]["documents_dropped"] == 1
    assert report["dropped"]["near_duplicates"]["examples"] == [changed[:300]]


def test_near_duplicates_are_those_that_brute_force_finds(tmp_path: Path) -> None:
    rng = random.Random(0)
    documents = []
    for text in SAMPLE[:30]:
        words = text.split()
        edited = [w if rng.random() > share else f"w{rng.randrange(999)}" for share in (0.02,) for w in words]
        documents += [text, " ".join(edited)]
    rng.shuffle(documents)

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = "".join(c for c in text.lower() if c.isalnum() or c.isspace()).split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    sets = [shingles(text) for text in documents]
    alike = [max((len(a & b) / len(a | b) for b in sets[:i]), default=0.0) for i, a in enumerate(sets)]
    report = run(tmp_path, documents, near_duplicates=NEAR, val_fraction=0.001)
    kept = set(everything(tmp_path))
    expected = [rewritten(text) for text in documents]
    for text, similarity in zip(expected, alike, strict=True):  # MinHash estimates to about 0.06
        if similarity > 0.85:
            assert text not in kept
        elif similarity < 0.55:
            assert text in kept
    assert report["steps"]["near_duplicates"]["documents_dropped"] >= sum(s > 0.85 for s in alike) > 0


def test_texts_without_words_are_not_near_duplicates_of_each_other(tmp_path: Path) -> None:
    documents = [*SAMPLE, "!!! ???", "... ---", "😀 😀", "one two", "one three", "$$"]
    report = run(tmp_path, documents, near_duplicates=NEAR, min_chars=1)
    assert report["documents_out"] == len(documents)


def test_every_pass_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    run(tmp_path, SAMPLE, near_duplicates=NEAR)
    shown = capsys.readouterr().out
    for line in ("clean: 60 of 60 documents", "near duplicates: 16 of 16 bands", "writing: 60 of 60 documents"):
        assert line in shown


def test_the_split_stays_when_the_corpus_grows(tmp_path: Path) -> None:
    run(tmp_path, SAMPLE[:30], val_fraction=0.3)
    before = {name: side(tmp_path, name) for name in ("train", "val")}
    run(tmp_path, [*reversed(SAMPLE), *SAMPLE], val_fraction=0.3)
    for name in ("train", "val"):
        assert set(before[name]) <= set(side(tmp_path, name))
    assert len(everything(tmp_path)) == 60


def test_the_bytes_depend_on_nothing_but_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "GROUP_BYTES", 9_000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 25_000)
    documents = [*SAMPLE, SAMPLE[4], "short", SAMPLE[9] + " And so on."]
    found = set()
    for pieces in (1, 3, 8):
        source = raw(tmp_path / f"raw-{pieces}", documents, pieces=pieces)
        options = preset(near_duplicates=NEAR, decontaminate_val=True, val_fraction=0.1)
        cleaning.clean(options, source, tmp_path / str(pieces) / "clean", tmp_path / str(pieces) / "plots")
        found.add(digest(tmp_path / str(pieces)))
        assert len(list((tmp_path / str(pieces) / "clean/train").iterdir())) > 1
    assert len(found) == 1


def test_batches_are_put_back_in_order() -> None:
    whole = pa.record_batch({"row": list(range(10))})
    shuffled = [whole.slice(7, 3), whole.slice(2, 2), pa.record_batch({"row": [4, 5, 6, 0, 1]})]
    assert [r for batch in cleaning.in_order(shuffled) for r in batch.column("row").to_pylist()] == list(range(10))
    with pytest.raises(RuntimeError, match="row 0 did not come back"):
        list(cleaning.in_order([whole.slice(1)]))


ON_RAY = """
import json
from pathlib import Path
import ray
from pipeline import params
from pipeline.clean import cleaning
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, _node_ip_address="127.0.0.1")
options = params.Clean.model_validate_json(Path("clean.json").read_text())
report = cleaning.clean(options, Path("raw"), Path("ray/clean"), Path("ray/plots"), "ray")
Path("report.json").write_text(json.dumps(report))
"""


@pytest.mark.timeout(120)
def test_ray_gives_the_same_clean_set(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    documents = [*SAMPLE, SAMPLE[4], "short", SAMPLE[9] + " And so on."]
    source = raw(tmp_path / "raw", documents, pieces=3)
    options = preset(near_duplicates=NEAR, val_fraction=0.1)
    report = cleaning.clean(options, source, tmp_path / "native/clean", tmp_path / "native/plots")
    (tmp_path / "clean.json").write_text(options.model_dump_json())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Ray starts many processes that would all compile its modules
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path / "bytecode")
    done = subprocess.run([sys.executable, "-c", ON_RAY], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digest(tmp_path / "ray") == digest(tmp_path / "native")
    assert json.loads((tmp_path / "report.json").read_text()) == report


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.text("abc ÃâÂ€é\t\n.@1汉", max_size=60), min_size=1, max_size=25),
    st.booleans(), st.booleans(), st.sampled_from(["any", "latin", "han"]),
)  # fmt: skip
def test_every_byte_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], strict: bool, mask: bool, script: str
) -> None:
    folder = tmp_path_factory.mktemp("counted")
    changes: dict[str, Any] = {
        "quality": {"enabled": strict},
        "near_duplicates": {**NEAR, "enabled": strict},
        "min_chars": 2,
    }
    try:
        report = run(folder, documents, mask_personal_data=mask, script=script, decontaminate_val=strict, **changes)
    except UserError:  # nothing, or one document, is left
        assert not (folder / "clean").exists()
        return
    documents_in, bytes_in = len(documents), sum(len(text.encode()) for text in documents)
    for step in report["steps"].values():
        assert (step["documents_in"], step["bytes_in"]) == (documents_in, bytes_in)
        documents_in -= step["documents_dropped"]
        bytes_in += step["bytes_changed"] - step["bytes_dropped"]
        assert (step["documents_out"], step["bytes_out"]) == (documents_in, bytes_in)
    written = everything(folder)
    assert (len(written), sum(len(text.encode()) for text in written)) == (documents_in, bytes_in)
    assert report["train"]["documents"] + report["val"]["documents"] == report["documents_out"] == documents_in
    assert sum(source["bytes"] for source in report["sources"].values()) == bytes_in
    dropped = sum(entry["documents"] for entry in report["dropped"].values())
    assert dropped == len(documents) - documents_in
    assert all(1 <= len(entry["examples"]) <= 3 for entry in report["dropped"].values())


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (SAMPLE[:1], r"one document is left, and val needs one of its own: .*raw-0 has 1 \(dropped: none\)"),
        ([SAMPLE[0]] * 9, r"one document is left.*: .*raw-0 has 9 \(dropped: 8 exact duplicates\)"),
        (["short", "and small"], r"no document is left: .*raw-0 has 2 \(dropped: 2 too short\)"),
    ],
)
def test_too_little_to_train_on_is_refused(documents: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, documents)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw-0"]


def test_val_of_a_small_corpus_is_large_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where val_fraction leaves val next to nothing, the documents of the next hashes follow."""
    report = run(tmp_path, SAMPLE)
    total = report["bytes_out"]
    assert max(total / 10, 4096) <= report["val"]["bytes"] < 8192
    assert report["moved_to_fill_split"] > 0
    said = " ".join(capsys.readouterr().err.split())
    assert "clean.val_fraction gives val too little to measure a loss on" in said
    assert "Add documents, or set another clean.val_fraction" in said
    ids = {name: [row["id"] for t in shards.tables(tmp_path / "clean" / name) for row in t.to_pylist()]
           for name in ("train", "val")}  # fmt: skip
    assert max(ids["val"]) < min(ids["train"])
    val = side(tmp_path, "val")
    run(tmp_path, list(reversed(SAMPLE)))
    assert sorted(side(tmp_path, "val")) == sorted(val)


def test_equal_texts_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    for documents in ([text for text in SAMPLE[:6] for _ in range(9)], [SAMPLE[0]] * 30 + [SAMPLE[1]]):
        run(tmp_path, documents, exact_duplicates=False)
        train, val = side(tmp_path, "train"), side(tmp_path, "val")
        assert train and val and not set(train) & set(val)
    with pytest.raises(UserError, match="all 9 documents left are equal"):
        run(tmp_path, [SAMPLE[0]] * 9, exact_duplicates=False)


def test_a_split_that_is_empty_by_chance_gets_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(tmp_path, SAMPLE[:5], val_fraction=1e-9)
    assert report["val"]["documents"] == report["moved_to_fill_split"] >= 1
    assert "gives val too little to measure a loss on (0 of 5 documents)" in capsys.readouterr().err
    report = run(tmp_path, SAMPLE[:5], val_fraction=1 - 1e-9)
    assert report["train"]["documents"] == 1
    assert "leaves train no document (5 of 5 documents)" in capsys.readouterr().err
    splits = ["train"] * 5 + ["val"]
    report = run(tmp_path, SAMPLE[:6], splits)
    assert report["val"]["documents"] == 1 and report["moved_to_fill_split"] == 0
    assert "train.block_size" in capsys.readouterr().err
    with pytest.raises(UserError, match="every val document of the source was dropped"):
        run(tmp_path, [*SAMPLE[:5], "short"], splits)


def test_the_last_line_says_what_changed_and_a_rule_that_drops_most_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(tmp_path, [*SAMPLE, f"{SAMPLE[0]}  ", f"{SAMPLE[1]}\x00", "short", "cafÃ© " * 20])
    assert summary(report) == (
        "rewrote 3 of 64 documents (3 tidy whitespace, 1 fix encoding), dropped 3 (2 exact duplicates, 1 too short), "
        f"kept 61, {report['val']['documents']} of them val"
    )
    assert "the rule" not in capsys.readouterr().err
    run(tmp_path, [*SAMPLE[:9], *("从前有一只小狐狸住在森林里。" * n for n in range(7, 30))], script="latin")
    said = " ".join(capsys.readouterr().err.split())
    assert "the rule script dropped 23 of 32 documents: fewer of its letters than clean.min_script_share" in said


def test_of_many_sources_the_largest_are_named(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", SAMPLE)
    table = pq.read_table(source / "part-00000.parquet")
    names = pa.array([f"file {min(row, 49)}" for row in range(60)])
    pq.write_table(table.set_column(2, "source", names), source / "part-00000.parquet")
    (source / "manifest.json").unlink()
    found = cleaning.clean(preset(), source, tmp_path / "clean", tmp_path / "plots")["sources"]
    assert len(found) == 21 and found["file 49"]["documents"] == 11
    assert found["(other sources)"]["sources"] == 30 and found["(other sources)"]["documents"] == 30
    assert sum(entry["bytes"] for entry in found.values()) == sum(len(text.encode()) for text in SAMPLE)


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path) -> None:
    left = tmp_path / ".clean-work/kept/part-00000.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert run(tmp_path, SAMPLE)["documents_out"] == len(SAMPLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "plots", "raw-0"]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "127.0.0.1:none"])
def test_a_ray_cluster_that_does_not_answer(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", address.format(taken.getsockname()[1]))
        with pytest.raises(UserError, match=r"RAY_ADDRESS = '.*127\.0\.0\.1:.*': no Ray cluster answers .*unset it"):
            run(tmp_path, SAMPLE)
    assert not (tmp_path / "clean").exists()


def test_raw_shards_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no part-\*\.parquet in .*absent; run the stage download"):
        cleaning.clean(preset(), tmp_path / "absent", tmp_path / "clean", tmp_path / "plots")
    source = raw(tmp_path / "raw", SAMPLE)
    whole = (source / "part-00000.parquet").read_bytes()
    (source / "part-00000.parquet").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged"):
        cleaning.clean(preset(), source, tmp_path / "clean", tmp_path / "plots")
    pq.write_table(pa.table({"text": ["a"]}), source / "part-00000.parquet")
    with pytest.raises(UserError, match=r"part-00000\.parquet lacks the column row, source, split"):
        cleaning.clean(preset(), source, tmp_path / "clean", tmp_path / "plots")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.9])
def test_one_flipped_byte_is_noticed(at: float, tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", SAMPLE, pieces=2)
    whole = bytearray((source / "part-00001.parquet").read_bytes())
    whole[int(at * len(whole))] ^= 1
    (source / "part-00001.parquet").write_bytes(whole)
    with pytest.raises(UserError, match=r"part-00001\.parquet (has changed|is damaged).*run the stage download again"):
        cleaning.clean(preset(), source, tmp_path / "clean", tmp_path / "plots")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_shards_are_those_of_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = raw(tmp_path / "raw", SAMPLE, pieces=3)
    (source / "part-00001.parquet").rename(tmp_path / "lost.parquet")
    with pytest.raises(UserError, match=r"part-00001\.parquet in manifest\.json or in the folder, but not in both"):
        cleaning.clean(preset(), source, tmp_path / "clean", tmp_path / "plots")
    (tmp_path / "lost.parquet").rename(source / "part-00001.parquet")
    for broken in ("{", "[]", '{"shards": [{"name": 1}]}'):
        (source / "manifest.json").write_text(broken)
        with pytest.raises(UserError, match=r"manifest\.json is damaged"):
            cleaning.clean(preset(), source, tmp_path / "clean", tmp_path / "plots")
    (source / "manifest.json").unlink()
    cleaning.clean(preset(), source, tmp_path / "clean", tmp_path / "plots")
    assert "the shards are not verified" in capsys.readouterr().err


def test_signatures_of_a_bucket_are_compared(tmp_path: Path) -> None:
    options = params.NearDuplicates(enabled=True, shingle_words=3, bands=2, rows=2, threshold=0.75)
    found = duplicates.NearDuplicates(options, tmp_path)
    found.add(np.array([[1, 2, 3, 4], [1, 2, 9, 9], [1, 2, 3, 5]]))
    found.add(np.array([[7, 7, 3, 5], [0, 0, 0, 0]]))
    assert found.find(np.arange(5)).tolist() == [False, False, True, False, False]
