"""Stage instruct's work: conversations, checked, put into the chat template, tokenized with marks on what is trained.

    report = instruct(params.instruct, checkpoint=Path("models/litgpt"), into=Path("data/instruct"))

data/instruct/{train,val} are token sets with the flags of pipeline/tokens/flags.py, in blocks of the model's context:
no conversation crosses into another (plain texts do). val.jsonl has what is held out, tokenizer/ the chat template.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline import console
from pipeline.download.sources import SOURCES, bounded
from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.instruct.bundled import BundledConversations
from pipeline.instruct.conversations import Conversation, of_record
from pipeline.instruct.wandb import ArtifactRecords
from pipeline.model import checkpoint_folder
from pipeline.params import Instruct
from pipeline.tokenize.writer import Writer
from pipeline.tokens import chat_template
from pipeline.tokens import tokenizer as vocabulary
from pipeline.tokens.flags import FIRST, LOSS

SPLITS = ("train", "val")
_SOURCES = SOURCES | {"bundled": BundledConversations, "wandb": ArtifactRecords}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", chat_template.FILE)
_NAMED = 5  # bad records in a message
_OPEN = 64  # blocks that still take conversations
_CHUNK = 8 * 2**20  # tokens

# litgpt's prompt style phi-2, with an EOS token after each answer: plain words, so that no token has to be added.
TEMPLATE = """\
{%- for message in messages %}
{%- if not loop.first %}{{ '\\n' }}{% endif %}
{%- if message['role'] == 'user' %}{{ 'Instruct: ' + message['content'] }}
{%- elif message['role'] == 'assistant' %}{{ 'Output:' + message['content'] + eos_token }}
{%- else %}{{ message['content'] }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\nOutput:' }}{% endif %}"""
_PROMPT_STYLE = {"class_path": "litgpt.prompts.Phi2"}


def instruct(params: Instruct, checkpoint: Path, into: Path) -> dict[str, Any]:
    """Write `into` for finetuning the model of `checkpoint` and return the report.

    Raises UserError for a source that is not there, for records that are no conversations (unless `bad_records` is
    drop), and where nothing fits into the model's context.
    """
    model, _ = checkpoint_folder.described(checkpoint)
    with written_whole(into) as folder:
        folder.mkdir()
        _write_tokenizer(checkpoint, folder / "tokenizer")
        template = chat_template.ChatTemplate(folder / "tokenizer")
        encoder, eos = vocabulary.load(folder / "tokenizer"), vocabulary.eos_id(folder / "tokenizer")
        dropped: Counter[str] = Counter()
        cut: Counter[str] = Counter()
        talks: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        texts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        held_out = []
        with _named_instruct(), _SOURCES[params.source](params, into.parent) as source:
            records = ((d.source, d.text) for d in bounded(source.files(), params))
            for conversation in _distinct(_checked(records, params.bad_records, dropped, cut), dropped):
                split = "val" if _drawn(conversation) < params.val_fraction else "train"
                if conversation.messages:
                    marked = _fitting(template, conversation.messages, model.block_size, cut)
                    if marked is None:
                        dropped[f"longer than the model's context of {model.block_size} tokens"] += 1
                        continue
                    talks[split].append(_flagged(*marked))
                else:
                    ids = np.array([*encoder.encode(conversation.text, add_special_tokens=False).ids, eos])
                    texts[split].append(_flagged(ids, np.ones(len(ids), bool)))
                if split == "val":
                    held_out.append(conversation)
            origin, licence = source.manifest.get("origin"), source.manifest.get("licence")
            dropped.update(source.dropped)
        report: dict[str, Any] = {"origin": origin, "licence": licence, "block_size": model.block_size}
        for split in SPLITS:
            if not talks[split] and not texts[split]:
                raise UserError(_nothing(split, params, dropped))
            report[split] = _write(folder / split, talks[split], texts[split], model.block_size, eos)
        lines = [
            json.dumps(
                {"messages": c.messages, "text": c.text, "constraints": c.constraints}, ensure_ascii=False
            ) + "\n"
            for c in held_out
        ]  # fmt: skip
        (folder / "val.jsonl").write_text("".join(lines), encoding="utf-8")
    return report | {"dropped": dict(dropped), "cut": dict(cut)}


# --- reading ----------------------------------------------------------------------------------------------------------


def _checked(
    records: Iterator[tuple[str, str]], bad_records: str, dropped: Counter[str], cut: Counter[str]
) -> Iterator[Conversation]:
    """The conversations; at the end, an error with the first bad records, or a warning."""
    bad: list[str] = []
    for name, text in records:
        whole = json.loads(text)
        try:
            yield of_record(whole["record"], cut)
        except ValueError as error:
            bad.append(f"{name}, {whole['place']}: {error}" if len(bad) < _NAMED else "")
    if not bad:
        return
    listed = "\n  ".join([f"{len(bad):,} records are no conversations:", *bad[:_NAMED]])
    if bad_records == "error":
        raise UserError(f"{listed}\nmend them, or leave them out: instruct.bad_records: drop (docs/finetune.md)")
    dropped["no conversation"] += len(bad)
    console.warn(f"instruct: left out: {listed}")


def _distinct(conversations: Iterator[Conversation], dropped: Counter[str]) -> Iterator[Conversation]:
    seen: set[bytes] = set()
    for conversation in conversations:
        key = _digest(conversation)
        if key in seen:
            dropped["equal to another"] += 1
        else:
            seen.add(key)
            yield conversation


def _digest(conversation: Conversation) -> bytes:
    content = json.dumps([conversation.messages, conversation.text]).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def _drawn(conversation: Conversation) -> float:
    """A number in [0, 1) of the conversation alone, so that one that is held out stays so when others come."""
    return int.from_bytes(_digest(conversation)[:8], "little") / 2**64


@contextmanager
def _named_instruct() -> Iterator[None]:
    """The sources speak of the section download, which has the same parameters."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"\bdownload(?=[.=:])", "instruct", str(error))) from error.__cause__


def _nothing(split: str, params: Instruct, dropped: Counter[str]) -> str:
    losses = ", ".join(f"{count:,} {why}" for why, count in dropped.items()) or "none dropped"
    hint = f"raise instruct.val_fraction (now {params.val_fraction:g})" if split == "val" else "give more"
    return f"no conversation is left for {split} ({losses}); {hint}"


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_tokenizer(checkpoint: Path, into: Path) -> None:
    """The model's tokenizer with a chat template: its own, or TEMPLATE, and then litgpt's name of it."""
    into.mkdir()
    for name in (*_TOKENIZER, "tokenizer.model", "generation_config.json"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, into / name)
    if not chat_template.has_one(into):
        (into / chat_template.FILE).write_text(TEMPLATE, encoding="utf-8")
        (into / "prompt_style.yaml").write_text(yaml.safe_dump(_PROMPT_STYLE), encoding="utf-8")


def _fitting(
    template: chat_template.ChatTemplate, messages: list[dict[str, str]], most: int, cut: Counter[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids and marks of the conversation, without its last exchanges where they do not fit; None if not one fits."""
    left = list(messages)
    while len(left) > 1 and left[-1]["role"] == "assistant":
        ids, trained = template.marked(left)
        if len(ids) <= most:
            if len(left) < len(messages):
                cut["turns beyond the model's context"] += len(messages) - len(left)
                messages[:] = left
            return ids, trained
        left = left[:-2]
    return None


def _flagged(ids: np.ndarray, trained: np.ndarray) -> np.ndarray:
    tokens = ids | np.where(trained, LOSS, 0)
    tokens[0] |= FIRST
    return tokens


def _write(folder: Path, talks: list[np.ndarray], texts: list[np.ndarray], block_size: int, eos: int) -> dict[str, Any]:
    """Write conversations in blocks of their own, then plain texts one after the other, as in pretraining.

    What is left of a block is filled with EOS tokens that are not trained. Returns the counts.
    """
    pad = np.full(block_size, eos | FIRST)
    blocks = [np.concatenate(block) for block in _blocks(talks, block_size)]
    stream = np.concatenate([*texts, pad[:0]])
    blocks += [stream[begin : begin + block_size] for begin in range(0, len(stream), block_size)]
    folder.mkdir()
    with Writer(folder, _CHUNK, np.dtype(np.int32), flags=True) as writer:
        for block in blocks:
            writer.add(np.concatenate([block, pad])[:block_size], np.array([block_size]))
        writer.add(pad[:1], np.array([1]))  # the sample of the last block ends with the token after it
    n_tokens = sum(map(len, blocks))
    return {
        "conversations": len(talks),
        "texts": len(texts),
        "blocks": len(blocks),
        "tokens": n_tokens,
        "trained_tokens": int(sum(np.count_nonzero(block & LOSS) for block in blocks)),
        "filled": n_tokens / (len(blocks) * block_size),
    }


def _blocks(conversations: list[np.ndarray], block_size: int) -> Iterator[list[np.ndarray]]:
    """First fit into the blocks that are open, in order; the fullest is closed when there are too many."""
    blocks: list[tuple[int, list[np.ndarray]]] = []
    for each in conversations:
        for n, (length, block) in enumerate(blocks):
            if length + len(each) <= block_size:
                blocks[n] = (length + len(each), [*block, each])
                break
        else:
            blocks.append((len(each), [each]))
        if len(blocks) > _OPEN:
            fullest = max(range(len(blocks)), key=lambda n: blocks[n][0])
            yield blocks.pop(fullest)[1]
    yield from (block for _, block in blocks)
