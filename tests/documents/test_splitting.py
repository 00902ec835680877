"""How a text falls into documents: each way of splitting, and the guess, which goes by the lengths it gives."""

import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents import splitting
from pipeline.documents.reading import settle
from pipeline.errors import UserError
from pipeline.params.download import Local
from tests.documents.formats import AUTO, PARAGRAPHS, files, read

PROSE = (
    "It was the best of times and it was, as far as anyone could tell, the\nworst of times; people walked through "
    "the streets of the old town and\nspoke of the weather, which had been strange, and of the harvest that\nwould "
    "soon be brought in. Nobody knew what the winter would bring to\nthem, and nobody asked.\n"
)
TALES = ["\n\n".join(PARAGRAPHS[n : n + 4]) for n in range(0, 40, 4)]
MARK = "<|endoftext|>"


@pytest.mark.parametrize(
    ("text", "how", "documents"),
    [
        (f"\n{MARK}\n".join(TALES), "separator_lines", TALES),
        (f"{MARK}\n" + f"\n{MARK}\n".join(TALES) + f"\n{MARK}", "separator_lines", TALES),
        (MARK.join(TALES), "separator", TALES),
        (f"{MARK} ".join(PARAGRAPHS), "separator", PARAGRAPHS),
        ("\n".join(PARAGRAPHS) + "\n", "lines", PARAGRAPHS),
        ("\n".join(PARAGRAPHS[:20]) + "\n\n" + "\n".join(PARAGRAPHS[20:]), "lines", PARAGRAPHS),
        ("\n\n".join(PARAGRAPHS), "blank_lines", PARAGRAPHS),
        ("\r\n\r\n".join(PARAGRAPHS), "blank_lines", PARAGRAPHS),
        ("\n\n\n".join(TALES), "wide_blank_lines", TALES),
        (PROSE * 4, "whole", [PROSE * 4]),
        ("\n".join([PROSE] * 4), "blank_lines", [PROSE[:-1]] * 4),
        ("\n".join(TALES), "lone_newlines", TALES),
        ("Only one line", "whole", ["Only one line"]),
    ],
)
def test_how_a_text_falls_into_documents_is_guessed(text: str, how: str, documents: list[str]) -> None:
    found = splitting.guess(text.replace("\r\n", "\n"), MARK)
    assert (found.how, found.sure) == (how, True)
    assert [text.strip() for text in read(text.encode(), "a.txt")] == [text.strip() for text in documents]


@pytest.mark.parametrize(
    "mention",
    [
        f"The mark {MARK} is what stands between two texts, said the teacher, and the children wrote it down.",
        f"What stands between two texts, said the teacher, and the children wrote it down, is {MARK}",
        f"{MARK} is what stands between two texts, said the teacher, and the children wrote it down.",
        f'The teacher said: "{MARK}" and "{MARK}" again, and the children wrote it down into their books.',
    ],
)
@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_a_separator_that_is_only_mentioned_splits_nothing(mention: str, gap: str) -> None:
    stories = [f"{n}: {text}" for n in range(15) for text in PARAGRAPHS]
    stories.insert(301, mention)
    found = read(gap.join(stories).encode(), "a.txt")
    assert len(set(found) & set(stories)) >= len(stories) - 2  # a few have such a gap within


def test_a_separator_mentioned_beside_those_on_lines_of_their_own_stays_in_its_document() -> None:
    tales = [*TALES, f"The mark {MARK} is what stands between two texts."]
    assert read(f"\n{MARK}\n".join(tales).encode(), "a.txt") == tales


def test_line_breaks_of_dialogue_are_not_taken_for_the_ends_of_stories(capsys: pytest.CaptureFixture[str]) -> None:
    """Stories with blank lines around, and now and then a line break before what somebody says."""
    draw = random.Random(0)
    stories = [re.sub("\n\n", lambda _: "\n" if draw.random() < 0.05 else "\n\n", story) for story in TALES * 30]
    documents = read("\n\n".join(stories).encode(), "a.txt")
    assert max(map(len, documents)) < 8 * min(map(len, documents))
    assert "split: auto takes blank_lines" in capsys.readouterr().out


def test_where_no_way_of_splitting_gives_alike_documents_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    blocks = [" ".join(["word"] * min(2000, int(draw.paretovariate(0.5)))) + "." for _ in range(300)]
    assert len(read("\n\n".join(blocks).encode(), "a.txt")) == 300
    said = capsys.readouterr()
    assert "no way to split it gives documents of similar length; blank_lines is the safest" in " ".join(
        said.err.split()
    )
    assert "300 documents in its first" in said.out
    assert "the first begins 'word" in said.out


FILE = Path(__file__).parents[3] / "shared/data/tinystories/tinystories_sample.txt"


@pytest.mark.skipif(not FILE.is_file(), reason="the real sample is not there")
@pytest.mark.parametrize("gap", ["\n", "\n\n\n", f"\n{MARK}\n"])
def test_real_stories_are_found_whatever_stands_between_them(gap: str) -> None:
    stories = list(splitting.split([FILE.read_text(encoding="utf-8")], "lone_newlines", MARK))
    assert 950 <= len(stories) <= 1050
    found = read(gap.join(stories).encode(), "a.txt")
    assert len(set(found) & set(stories)) >= len(stories) - 2  # a few have such a gap within


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text("ab. \n<|>é", max_size=30), max_size=8),
    st.sampled_from(splitting.WAYS),
    st.integers(1, 7),
)
def test_where_a_chunk_ends_does_not_matter(parts: list[str], how: str, size: int) -> None:
    text = "<|>".join(parts)
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(splitting.split(chunks, how, "<|>")) == list(splitting.split([text], how, "<|>"))
    if how != "separator_lines":
        joined = "".join("".join(splitting.split(chunks, how, "<|>")).split())
        assert joined == "".join(text.replace("<|>", "" if how == "separator" else "<|>").split())


@pytest.mark.parametrize("how", ["auto", "lines", "blank_lines"])
@pytest.mark.parametrize("line", ["\n", " \n", "\r\n"])
def test_a_hundred_megabytes_of_blank_lines_take_no_time(how: str, line: str) -> None:
    begun = time.monotonic()
    blank = (line * (2**20 // len(line))).replace("\r\n", "\n")
    chunks = ["A story.\n", *([blank] * 50), "Another one.\n", *([blank] * 50)]
    assert list(splitting.split(chunks, how if how != "auto" else "lines", "")) == ["A story.", "Another one."]
    assert time.monotonic() - begun < 10


# --- a set of files ---------------------------------------------------------------------------------------------------


def settled(texts: list[str]) -> str:
    named = {f"{number}.txt": text.encode() for number, text in enumerate(texts)}
    return settle(files(named), AUTO, Counter()).split


def test_a_folder_of_files_with_a_story_each_gives_a_document_a_file() -> None:
    assert settled(TALES * 10) == "whole"
    assert settled(["\n".join(tale.split("\n\n")) for tale in TALES] * 10) == "whole"


def test_files_with_many_documents_each_are_split() -> None:
    assert settled(["\n".join(PARAGRAPHS)] * 5) == "auto"
    assert settled([f"\n{MARK}\n".join(TALES)] * 50) == "auto"
    assert settled(["\n\n".join(PARAGRAPHS * 30)] * 50) == "auto"
    assert settled(TALES[:2]) == "auto"


def test_the_parameters_allow_each_way_of_splitting() -> None:
    kind = Local.model_fields["split"].annotation
    assert set(get_args(kind)) == {"auto", *splitting.WAYS}


def test_too_long_a_document_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"the document that begins 'word word .*longer than 33,554,432 characters"):
        list(splitting.split(["word " * 2**18] * 40, "lines", MARK))
