"""Causal attention within documents on a CPU: torch's flash kernel on each document, as one operator.

A mask would let the kernel compute the scores of all pairs and throw most of them away; a document at a time costs what
its own pairs cost. One operator, since the number of documents and their lengths differ from batch to batch.

Legend: B batch, T time, H query heads, D head size.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, begin_BT: Tensor) -> Tensor:
    """softmax(q·kᵀ / sqrt(D))·v of each token over itself and the earlier tokens of its document: [B, H, T, D].

    `begin_BT`: where in its row each token's document begins. Computed in float32 whatever the inputs' dtype: smaller
    numbers are slower here. Differentiable in the first three.
    """
    y_BHTD: Tensor = _attend(q_BHTD.float(), k_BHTD.float(), v_BHTD.float(), begin_BT)[0]
    return y_BHTD.to(q_BHTD.dtype)


@torch.library.custom_op("moe::document_attention", mutates_args=(), device_types="cpu")
def _attend(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, begin_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return y_BHTD, laid out in memory as [B, T, H, D], and for backward each token's logsumexp [B, T, H]."""
    y_BTHD, logsumexp_BTH = _like(q_BHTD)
    for of in _documents(begin_BT):
        y, logsumexp = _forward_kernel(q_BHTD[of], k_BHTD[of], v_BHTD[of], 0.0, True)
        y_BTHD.transpose(1, 2)[of] = y
        logsumexp_BTH.transpose(1, 2)[of] = logsumexp
    return y_BTHD.transpose(1, 2), logsumexp_BTH


@_attend.register_fake
def _(q_BHTD: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    y_BTHD, logsumexp_BTH = _like(q_BHTD)
    return y_BTHD.transpose(1, 2), logsumexp_BTH


@torch.library.custom_op("moe::document_attention_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    grad_BHTD: Tensor,
    q_BHTD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    begin_BT: Tensor,
    y_BHTD: Tensor,
    logsumexp_BTH: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [_like(q_BHTD)[0].transpose(1, 2) for _ in range(3)]
    logsumexp_BHT = logsumexp_BTH.transpose(1, 2)
    for of in _documents(begin_BT):
        inputs = (each[of] for each in (grad_BHTD, q_BHTD, k_BHTD, v_BHTD, y_BHTD, logsumexp_BHT))
        for grad, part in zip(grads, _backward_kernel(*inputs, 0.0, True), strict=True):
            grad[of] = part
    return grads[0], grads[1], grads[2]


@_attend_backward.register_fake
def _(grad_BHTD: Tensor, q_BHTD: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(_like(q_BHTD)[0].transpose(1, 2) for _ in range(3))  # type: ignore[return-value]


def _like(q_BHTD: Tensor) -> tuple[Tensor, Tensor]:
    """Room for what is as large as the queries, and for a number for each of them."""
    n_batch, n_head, time, size = q_BHTD.shape
    return q_BHTD.new_empty(n_batch, time, n_head, size), q_BHTD.new_empty(n_batch, time, n_head)


def _documents(begin_BT: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """The part of a [B, H, T, …] tensor that each document is."""
    place_T = torch.arange(begin_BT.size(1))
    for row, first_T in enumerate(begin_BT == place_T):
        begins = first_T.nonzero().flatten().tolist()
        for begin, end in zip(begins, [*begins[1:], begin_BT.size(1)], strict=True):
            yield slice(row, row + 1), slice(None), slice(begin, end)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # y_BHTD alone has a gradient
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad_BHTD: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if grad_BHTD is None:
        return (None,) * 4
    return *_attend_backward(grad_BHTD, *ctx.saved_tensors), None


_attend.register_autograd(_backward, setup_context=_keep)
