"""A model run with a key/value cache: prompts at once, then a token of each row at a time; rows may join and leave.

    decoder = Decoder(model); logits_BV = decoder.add([[5, 3], [7]], room=100); logits_BV = decoder.step(token_B)

Rows of different lengths end in the same slot of the cache: shorter ones begin later, their positions count from
their own beginning, and no token sees the empty slots before it.

Legend: B rows, T tokens, C embedding, V padded vocabulary, H heads, G key/value heads, R = H/G, D head size,
S slots of the cache, L layers.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from litgpt.model import RMSNorm
from torch import Tensor, nn

from pipeline.model.build import MoEGPT
from pipeline.model.moe import MoE


@dataclass
class _Cache:
    """Keys and values of some rows; the slots from `end` on are still to be filled."""

    key_LBGSD: Tensor
    value_LBGSD: Tensor
    end: int
    empty: list[int]  # slots before each row's first token
    empty_B: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.empty_B = torch.tensor(self.empty, device=self.key_LBGSD.device)

    def kept(self, rows: list[int]) -> "_Cache":
        """These rows alone, without the slots that are empty in all of them."""
        empty = [self.empty[row] for row in rows]
        spare = min(empty)
        index_B = torch.tensor(rows, device=self.empty_B.device)
        key_LBGSD, value_LBGSD = (x[:, index_B, :, spare:] for x in (self.key_LBGSD, self.value_LBGSD))
        return _Cache(key_LBGSD, value_LBGSD, self.end - spare, [slots - spare for slots in empty])

    def joined(self, other: "_Cache") -> "_Cache":
        """The rows of both, moved so that they end in the same slot, with the larger room of the two."""
        end = max(self.end, other.end)
        room = max(cache.key_LBGSD.size(3) - cache.end for cache in (self, other))

        def placed(x_LBGSD: Tensor, cache: _Cache) -> Tensor:
            return F.pad(x_LBGSD[:, :, :, : cache.end], (0, 0, end - cache.end, room))

        return _Cache(
            torch.cat([placed(cache.key_LBGSD, cache) for cache in (self, other)], 1),
            torch.cat([placed(cache.value_LBGSD, cache) for cache in (self, other)], 1),
            end,
            [end - cache.end + slots for cache in (self, other) for slots in cache.empty],
        )


class Decoder:
    """One batch of sequences; the model itself keeps no state of it."""

    def __init__(self, model: MoEGPT) -> None:
        self._model = model.eval()
        self._attention = [block.attn for block in model.transformer.h]
        left, right = model.sin.chunk(2, -1)
        self._sin = torch.cat((-left, right), -1)  # of each half for the other, see `_rotate`
        self._cache: _Cache | None = None

    @torch.inference_mode()
    def add(self, ids: list[list[int]], room: int) -> Tensor:
        """Read prompts (none empty), which become the last rows; return the logits after each [B, V].

        At most `room` steps may follow, or as many as rows that were there before may still take.
        """
        config, weight = self._model.config, self._model.lm_head.weight
        longest = max(map(len, ids))
        shape = (config.n_layer, len(ids), config.n_query_groups, longest + room, config.head_size)
        added = _Cache(weight.new_zeros(shape), weight.new_zeros(shape), 0, [longest - len(row) for row in ids])
        idx_BT = torch.tensor([[0] * (longest - len(row)) + row for row in ids], device=weight.device)
        logits_BV = self._forward(idx_BT, added)
        self._cache = added if self._cache is None else self._cache.joined(added)
        return logits_BV

    @torch.inference_mode()
    def step(self, token_B: Tensor) -> Tensor:
        """Append a token to each row; return the logits after it [B, V]."""
        assert self._cache is not None
        return self._forward(token_B[:, None], self._cache)

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone; with none, as new."""
        assert self._cache is not None
        self._cache = self._cache.kept(rows) if rows else None

    def _forward(self, idx_BT: Tensor, cache: _Cache) -> Tensor:
        model = self._model
        begin, cache.end = cache.end, cache.end + idx_BT.size(1)
        slot_T = torch.arange(begin, cache.end, device=idx_BT.device)
        if any(cache.empty):
            position_BT = (slot_T - cache.empty_B[:, None]).clamp(min=0)
            cos_BT1D, sin_BT1D = model.cos[position_BT][:, :, None], self._sin[position_BT][:, :, None]
        else:
            cos_BT1D, sin_BT1D = (table[None, begin : cache.end, None] for table in (model.cos, self._sin))
        mask = _mask(slot_T, cache)
        x_BTC = model.transformer.wte(idx_BT)
        for layer, block in enumerate(model.transformer.h):
            x_BTC = x_BTC + self._attend(layer, _norm(block.norm_1, x_BTC), cos_BT1D, sin_BT1D, begin, mask, cache)
            x_BTC = x_BTC + _feed_forward(block.mlp, _norm(block.norm_2, x_BTC))
        return model.lm_head(_norm(model.transformer.ln_f, x_BTC[:, -1]))

    def _attend(
        self,
        layer: int,
        x_BTC: Tensor,
        cos_BT1D: Tensor,
        sin_BT1D: Tensor,
        begin: int,
        mask: Tensor | None,
        cache: _Cache,
    ) -> Tensor:
        attention, config = self._attention[layer], self._model.config
        n_batch, n_new, _ = x_BTC.shape
        n_head, n_group, size = config.n_head, config.n_query_groups, config.head_size
        qkv_BTXD = attention.qkv(x_BTC).view(n_batch, n_new, n_head + 2 * n_group, size)
        qk_BTXD, v_BTGD = qkv_BTXD.split((n_head + n_group, n_group), 2)
        if config.norm_qk:
            q_BTHD, k_BTGD = qk_BTXD.split((n_head, n_group), 2)
            qk_BTXD = torch.cat((_norm(attention.norm_q, q_BTHD), _norm(attention.norm_k, k_BTGD)), 2)
        q_BTHD, k_BTGD = _rotate(qk_BTXD, cos_BT1D, sin_BT1D).split((n_head, n_group), 2)
        k_BGSD, v_BGSD = cache.key_LBGSD[layer, :, :, : cache.end], cache.value_LBGSD[layer, :, :, : cache.end]
        k_BGSD[:, :, begin:] = k_BTGD.transpose(1, 2)
        v_BGSD[:, :, begin:] = v_BTGD.transpose(1, 2)
        if n_new == 1:  # the heads that share keys stand where a sequence's queries would, so no key is copied
            q_BGRD = q_BTHD.view(n_batch, n_group, n_head // n_group, size)
            y_BTC = F.scaled_dot_product_attention(q_BGRD, k_BGSD, v_BGSD, mask).reshape(n_batch, 1, -1)
        else:
            y_BHTD = F.scaled_dot_product_attention(
                q_BTHD.transpose(1, 2), k_BGSD, v_BGSD, mask, is_causal=mask is None, enable_gqa=n_group < n_head
            )
            y_BTC = y_BHTD.transpose(1, 2).reshape(n_batch, n_new, -1)
        return attention.proj(y_BTC)


def _mask(slot_T: Tensor, cache: _Cache) -> Tensor | None:
    """[B, 1, T, S] or None: True where a token may look. An empty slot may look at itself, so that none is NaN."""
    if not any(cache.empty):
        return None
    key_S = torch.arange(cache.end, device=slot_T.device)
    filled_B1S = (key_S >= cache.empty_B[:, None])[:, None]
    causal_TS = key_S <= slot_T[:, None]
    return ((filled_B1S & causal_TS) | (key_S == slot_T[:, None]))[:, None]


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """The norm in one operator: a step of one token is so short that calls count."""
    return F.rms_norm(x.float(), norm.weight.shape, norm.weight.float(), norm.eps).to(x.dtype)


def _rotate(x_BTXD: Tensor, cos_BT1D: Tensor, sin_BT1D: Tensor) -> Tensor:
    """Rotary embedding of halves, (x1, x2) to (x1·cos - x2·sin, x2·cos + x1·sin), computed in float32."""
    swapped_BTXD = x_BTXD.roll(x_BTXD.size(-1) // 2, -1)
    return torch.addcmul(x_BTXD * cos_BT1D, swapped_BTXD, sin_BT1D).to(x_BTXD.dtype)


def _feed_forward(mlp: nn.Module, x_BTC: Tensor) -> Tensor:
    if x_BTC.size(1) > 1 or x_BTC.device.type != "cpu" or not isinstance(mlp, MoE):
        return mlp(x_BTC)
    y_BTC = (_one_token if x_BTC.size(0) == 1 else _few_tokens)(mlp, x_BTC[:, 0])[:, None]
    return y_BTC if mlp.shared_experts is None else y_BTC + mlp.shared_experts(x_BTC)


def _one_token(moe: MoE, x_1C: Tensor) -> Tensor:
    """The routed experts of a single token in turn: there is nothing to sort."""
    weight_1K, index_1K, *_ = moe.gate(x_1C)
    x_C, y_C = x_1C[0], torch.zeros_like(x_1C[0])
    for weight, expert in zip(weight_1K[0].tolist(), index_1K[0].tolist(), strict=True):
        gate_I, up_I = torch.mv(moe.gate_up_EJC[expert], x_C).chunk(2)
        y_C.addmv_(moe.down_ECI[expert], F.silu(gate_I).mul_(up_I), alpha=weight * moe.routed_scaling_factor)
    return y_C[None]


def _few_tokens(moe: MoE, x_NC: Tensor) -> Tensor:
    """The routed experts of a token of each row, sorted by Python, which is quicker for so few.

    N tokens, K experts of each, S = N·K token–expert assignments sorted by expert, M those of one, I an expert's width.
    """
    weight_NK, index_NK, *_ = moe.gate(x_NC)
    assigned: dict[int, list[int]] = {}
    for assignment, expert in enumerate(index_NK.flatten().tolist()):
        assigned.setdefault(expert, []).append(assignment)
    order_S = torch.tensor([n for of_expert in assigned.values() for n in of_expert])
    token_S = order_S // index_NK.size(1)
    x_SC = x_NC[token_S]
    y_SC = torch.empty_like(x_SC)
    begin = 0
    for expert, of_expert in assigned.items():
        end = begin + len(of_expert)
        gate_MI, up_MI = F.linear(x_SC[begin:end], moe.gate_up_EJC[expert]).chunk(2, -1)
        torch.mm(F.silu(gate_MI).mul_(up_MI), moe.down_ECI[expert].T, out=y_SC[begin:end])
        begin = end
    weight_S1 = weight_NK.to(x_NC.dtype).flatten()[order_S, None] * moe.routed_scaling_factor
    return torch.zeros_like(x_NC).index_add_(0, token_S, y_SC.mul_(weight_S1))
