"""The loss of every token of a token set, exactly; pipeline/evaluate/metrics.py makes figures of it.

    scores = score(model, store.read(0, store.n_tokens), Window(block_size=256, stride=None), 16, [torch.device("cpu")])

**What is scored.** A set of n tokens gives n - 1 scores: every token but the first, once each, given the tokens
before it in its window. Windows cross documents, as they do in training; with `eos_id` (the EOS token's id)
attention stays within a document, as in training with a document mask.

* Block by block (stride null): window k reads tokens [kT, kT + T) and scores tokens [kT + 1, kT + T], so that a token
  has 1 to T tokens of context. These are the samples that training would draw from the set.
* Sliding (stride s): window k reads tokens [ks, ks + T). The first scores as above, each later one its last s targets,
  so that a token past the first window has T - s + 1 to T tokens of context.

The loss of a token is computed in float32, sums of losses in float64. The batches do not depend on the number of
devices, so one device and many of a kind give the same bits.

Dimensions: B windows in a batch, T tokens in a window, C channels, R scored tokens in a batch, V vocabulary,
N scored tokens of the set, L layers with experts, K experts of a token.
"""

import copy
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.evaluate.routing import watched_choices
from pipeline.model.build import MoEGPT, documents

_LOGITS_AT_ONCE = 2**25  # float32 values of logits held at a time: 128 MiB


@dataclass(frozen=True)
class Window:
    """How a long token set falls into contexts; see the module's docstring."""

    block_size: int
    stride: int | None

    def spans(self, n_tokens: int) -> list[tuple[int, int, int]]:
        """(begin, end, first) of each window: it reads tokens [begin, end) and scores tokens [first, end]."""
        step = self.stride or self.block_size
        spans, first = [], 1
        for begin in range(0, n_tokens - 1, step):
            end = min(begin + self.block_size, n_tokens - 1)
            spans.append((begin, end, first))
            first = end + 1
            if end == n_tokens - 1:
                break
        return spans


@dataclass(frozen=True)
class Scores:
    """How the model predicted token i + 1 of a set, for i = 0 … N - 1."""

    nats_N: np.ndarray  # float32: -log p(token | context)
    top_N: np.ndarray  # float32: the largest probability the model gave to any token
    correct_N: np.ndarray  # bool: the token had that probability
    context_N: np.ndarray  # int32: tokens of context, 1 … block_size
    choices_NLK: np.ndarray  # uint16: experts of the token before it, best first; L = 0 if dense

    def __len__(self) -> int:
        return len(self.nats_N)


def score(
    model: MoEGPT,
    tokens_N: np.ndarray,
    window: Window,
    batch_size: int,
    devices: Sequence[torch.device],
    eos_id: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Scores:
    """Score every token of `tokens_N` (int64, n tokens) but the first; n - 1 scores.

    The model is copied to each device that it is not on; batches of `batch_size` windows go to whichever is free.
    Raises ValueError for fewer than two tokens.
    """
    if len(tokens_N) < 2:
        raise ValueError(f"{len(tokens_N)} tokens: at least two are needed to score one")
    spans = window.spans(len(tokens_N))
    full = [span for span in spans if span[1] - span[0] == window.block_size]
    batches = [full[i : i + batch_size] for i in range(0, len(full), batch_size)]
    batches += [[span] for span in spans[len(full) :]]  # the end of the set may be a shorter window
    replicas: queue.SimpleQueue[MoEGPT] = queue.SimpleQueue()
    for i, device in enumerate(devices):
        replicas.put((model if i == 0 else copy.deepcopy(model)).to(device).eval())

    def work(batch: list[tuple[int, int, int]]) -> Scores:
        replica = replicas.get()
        try:
            scores = _score_batch(replica, tokens_N, batch, eos_id)
        finally:
            replicas.put(replica)
        advance(len(scores))
        return scores

    with ThreadPoolExecutor(len(devices)) as pool:
        parts = [vars(scores).values() for scores in pool.map(work, batches)]
    return Scores(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@torch.inference_mode()
def _score_batch(model: MoEGPT, tokens_N: np.ndarray, spans: list[tuple[int, int, int]], eos_id: int | None) -> Scores:
    device = next(model.parameters()).device
    read_BT = np.stack([tokens_N[begin:end] for begin, end, _ in spans])
    next_BT = np.stack([tokens_N[begin + 1 : end + 1] for begin, end, _ in spans])
    length = read_BT.shape[1]
    scored_BT = np.arange(length)[None, :] >= np.array([first - begin - 1 for begin, _, first in spans])[:, None]
    idx_BT = torch.from_numpy(read_BT).to(device)
    position_BT, mask = (None, None) if eos_id is None else documents(idx_BT, eos_id)
    with watched_choices(model) as choices:
        x_BTC = model.hidden(idx_BT, position_BT, mask)
    rows = torch.from_numpy(scored_BT).to(device)
    x_RC, target_R = x_BTC[rows], torch.from_numpy(next_BT).to(device)[rows]
    nats, top, correct = [], [], []
    at_once = max(1, _LOGITS_AT_ONCE // model.config.padded_vocab_size)
    for x_rC, target_r in zip(x_RC.split(at_once), target_R.split(at_once), strict=True):
        logits_rV = model.lm_head(x_rC).float()
        norm_r = logits_rV.logsumexp(-1)
        best_r, token_r = logits_rV.max(-1)
        nats.append(norm_r - logits_rV.gather(-1, target_r[:, None])[:, 0])
        top.append((best_r - norm_r).exp())
        correct.append(token_r == target_r)
    context_BT = np.arange(length)[None, :] if position_BT is None else position_BT.cpu().numpy()
    context_BT = np.broadcast_to(context_BT + 1, scored_BT.shape).astype(np.int32)
    return Scores(
        torch.cat(nats).cpu().numpy(),
        torch.cat(top).cpu().numpy(),
        torch.cat(correct).cpu().numpy(),
        context_BT[scored_BT],
        choices.gathered(scored_BT),
    )
