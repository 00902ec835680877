"""The figures that follow from the loss of every token, and how the loss falls into groups of tokens.

    summary(scores, n_bytes)            # loss, perplexity, bits per byte, accuracy, calibration error
    breakdown(val, scores)              # by position, document length and source; calibration

N scored tokens, D documents, G groups.
"""

import math
from typing import Any

import numpy as np

from pipeline.evaluate.scoring import Scores
from pipeline.evaluate.token_set import TokenSet

_LENGTH_BINS = 8


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Total nats of a text's tokens as bits for each byte of its UTF-8 form."""
    return nats / math.log(2) / n_bytes


def summary(scores: Scores, n_bytes: int) -> dict[str, float]:
    """The headline figures. `n_bytes`: UTF-8 bytes of the text, EOS tokens not counted (their loss is)."""
    total = float(scores.nats_N.sum(dtype=np.float64))
    return {
        "loss": total / len(scores),
        "perplexity": math.exp(min(total / len(scores), 700.0)),
        "bits_per_byte": bits_per_byte(total, n_bytes),
        "accuracy": float(scores.correct_N.mean()),
        "calibration_error": calibration(scores)["ece"],
        "tokens": len(scores),
        "bytes": n_bytes,
    }


def breakdown(part: TokenSet, scores: Scores) -> dict[str, Any]:
    """The loss by position, by length of the document and by its source; the calibration."""
    document_N = part.document_N[1:]  # of the scored tokens
    names, source_D = np.unique(part.sources, return_inverse=True)
    edges = np.unique(np.quantile(part.lengths_D, np.linspace(0, 1, _LENGTH_BINS + 1)).astype(np.int64))
    bin_D = np.clip(np.searchsorted(edges, part.lengths_D, side="right") - 1, 0, max(len(edges) - 2, 0))
    sources = loss_by_group(scores, source_D[document_N], np.bincount(source_D, weights=part.bytes_D))
    lengths = loss_by_group(scores, bin_D[document_N], np.bincount(bin_D, weights=part.bytes_D))
    for group in sources:
        group["source"] = str(names[group.pop("group")])
    for group in lengths:
        length_d = part.lengths_D[bin_D == group.pop("group")]
        group |= {"shortest": int(length_d.min()), "longest": int(length_d.max()), "documents": len(length_d)}
    return {
        "by_position": loss_by_position(scores),
        "by_length": lengths,
        "by_source": sources,
        "calibration": calibration(scores),
    }


def loss_by_position(scores: Scores) -> list[dict[str, float]]:
    """Mean loss in nats for each length of context, 1 … block_size tokens."""
    count = np.bincount(scores.context_N)
    total = np.bincount(scores.context_N, weights=scores.nats_N.astype(np.float64))
    return [
        {"context": int(n), "loss": float(total[n] / count[n]), "tokens": int(count[n])} for n in np.flatnonzero(count)
    ]


def loss_by_group(scores: Scores, group_N: np.ndarray, bytes_G: np.ndarray) -> list[dict[str, Any]]:
    """Loss and bits per byte of each group of tokens: `group_N[i]` is the group of token i + 1.

    `bytes_G`: UTF-8 bytes of each group's text. Groups without a token are left out; `group` says which is which.
    """
    count = np.bincount(group_N, minlength=len(bytes_G))
    total = np.bincount(group_N, weights=scores.nats_N.astype(np.float64), minlength=len(bytes_G))
    return [
        {
            "group": int(g),
            "loss": float(total[g] / count[g]),
            "bits_per_byte": bits_per_byte(float(total[g]), int(bytes_G[g])),
            "tokens": int(count[g]),
            "bytes": int(bytes_G[g]),
        }
        for g in np.flatnonzero(count)
    ]


def calibration(scores: Scores, n_bins: int = 15) -> dict[str, Any]:
    """Reliability of the probability that the model gives to its first choice (Guo et al. 2017, arXiv 1706.04599).

    Bins of equal width over (0, 1]; `ece` is the mean gap between stated probability and share of hits, weighted by
    tokens: 0 is perfectly calibrated.
    """
    bin_N = np.clip(np.ceil(scores.top_N.astype(np.float64) * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    count = np.bincount(bin_N, minlength=n_bins)
    stated = np.bincount(bin_N, weights=scores.top_N.astype(np.float64), minlength=n_bins)
    hits = np.bincount(bin_N, weights=scores.correct_N.astype(np.float64), minlength=n_bins)
    bins = [
        {"probability": float(stated[b] / count[b]), "accuracy": float(hits[b] / count[b]), "tokens": int(count[b])}
        for b in np.flatnonzero(count)
    ]
    return {"ece": float(np.abs(stated - hits).sum() / len(scores)), "bins": bins}
