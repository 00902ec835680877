"""What finetuning did: the model before and after on held-out conversations, and on the text it was pretrained on.

    report = evaluate(params, {"before": Path("models/litgpt"), "after": Path("models/finetuned")}, data, tokens, clean)

Legend: B blocks in a batch, S = T + 1 tokens of a sample, C embedding, R trained tokens.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pipeline import console, plotting
from pipeline.evaluate import metrics, token_set
from pipeline.evaluate.scoring import Window, score
from pipeline.files import written_whole
from pipeline.generate.generation import Generator
from pipeline.generate.sampling import Sampling
from pipeline.model import checkpoint_folder
from pipeline.model.build import MoEGPT, apart
from pipeline.model.device import resolve
from pipeline.params import Params
from pipeline.storyteller.instructions import met
from pipeline.tokens import tokenizer as vocabulary
from pipeline.tokens.chat_template import ChatTemplate
from pipeline.tokens.flags import FIRST, ID, LOSS
from pipeline.tokens.store import TokenStore

_ANSWERED = 240  # held-out conversations that are answered
_SHOWN = 6  # of them in the report, with both answers


def evaluate(
    params: Params, models: dict[str, Path], data: Path, tokens: Path, clean: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of each model, and some conversations with each model's answer.

    Each gives its greedy answer to the last turn of the same held-out conversations; where these have constraints
    (instruct.source: bundled), the share of each that the answers meet. Besides, the loss on the trained tokens of
    data/val, and bits per byte on the text that the first was pretrained on.
    """
    with (data / "val.jsonl").open(encoding="utf-8") as file:
        held_out = [talk for talk in map(json.loads, file) if talk["messages"]][:_ANSWERED]
    device = resolve(params.evaluate.device, "evaluate.device")
    template = ChatTemplate(data / "tokenizer")
    val = token_set.whole(tokens / "val", clean / "val")
    figures: dict[str, Any] = {}
    answers: dict[str, list[str]] = {}
    for name, folder in models.items():
        model = checkpoint_folder.load(folder, device)
        with console.progress(f"evaluating {name}", len(val.tokens_N) - 1, "tokens") as advance:
            eos = vocabulary.eos_id(folder) if params.train.document_mask else None
            window = Window(params.train.block_size, params.evaluate.stride)
            scores = score(model, val.tokens_N, window, params.evaluate.batch_size, [device], eos, advance)
        generator = Generator(model, data / "tokenizer")
        prompts = [template.ids(talk["messages"][:-1]) for talk in held_out]
        sampling = Sampling(temperature=0, max_new_tokens=generator.context)
        completed = generator.generate_ids(prompts, sampling) if prompts else []
        answers[name] = [answer.text for answer in completed]
        figures[name] = {
            "answers": {
                "loss": answer_loss(model, data / "val", params.evaluate.batch_size),
                "ended": sum(answer.finish_reason == "end" for answer in completed) / max(1, len(completed)),
                **_constraints(held_out, answers[name]),
            },
            "val": metrics.summary(scores, val.n_bytes),
        }
    shown = []
    for i, talk in enumerate(held_out[:_SHOWN]):
        texts = {name: given[i] for name, given in answers.items()}
        each = {name: {"answer": text, "met": met(talk["constraints"] or {}, text)} for name, text in texts.items()}
        shown.append({"messages": talk["messages"], "constraints": talk["constraints"], **each})
    return figures, shown


def _constraints(held_out: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """The share of each constraint that is met, and of all; {} where no conversation has any."""
    checked = [met(talk["constraints"] or {}, text) for talk, text in zip(held_out, texts, strict=True)]
    names = sorted({name for each in checked for name in each})
    shares = {name: [each[name] for each in checked if name in each] for name in names}
    every = [value for values in shares.values() for value in values]
    if not every:
        return {}
    means = {name: sum(values) / len(values) for name, values in shares.items()}
    return {"constraints_met": sum(every) / len(every), "met": means}


@torch.inference_mode()
def answer_loss(model: MoEGPT, folder: Path, batch_size: int) -> float:
    """Mean cross-entropy of the trained tokens of a token set of conversations, nats; each sees its own alone."""
    store, block_size = TokenStore(folder), model.config.block_size
    device = model.lm_head.weight.device
    total, count = 0.0, 0
    for begin in range(0, store.n_tokens - 1, batch_size * block_size):
        end = min(store.n_tokens - 1, begin + batch_size * block_size)
        tokens = torch.from_numpy(store.read(begin, end + 1)).to(device)
        idx_BT, target_BT = (part.view(-1, block_size) for part in (tokens[:-1], tokens[1:]))
        x_BTC = model.hidden(idx_BT & ID, *apart((idx_BT & FIRST).bool()))
        trained_BT = (target_BT & LOSS).bool()
        logits_RV = model.lm_head(x_BTC[trained_BT]).float()
        total += float(F.cross_entropy(logits_RV, target_BT[trained_BT] & ID, reduction="sum"))
        count += int(trained_BT.sum())
    return total / count


def draw(figures: dict[str, Any], into: Path) -> None:
    """constraints.png: the share of each constraint that is met, before and after; an empty folder without any."""
    with written_whole(into) as folder, plotting.style():
        folder.mkdir()
        met_by = {name: each["answers"].get("met", {}) for name, each in figures.items()}
        names = list(next(iter(met_by.values())))
        if not names:
            return
        figure, axes = plotting.new(7, 3.5, title="Constraints met on held-out instructions", ylabel="share")
        width = 0.8 / len(met_by)
        colors = (plotting.FIRST, plotting.SECOND)
        for n, ((name, shares), color) in enumerate(zip(met_by.items(), colors, strict=True)):
            places = [i + n * width for i in range(len(names))]
            axes.bar(places, [shares[each] for each in names], width, label=name, color=color)
        axes.set_xticks([i + 0.4 - width / 2 for i in range(len(names))], names)
        axes.set_ylim(0, 1)
        axes.legend()
        plotting.save(figure, folder / "constraints.png")
