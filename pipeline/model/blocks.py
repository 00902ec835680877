"""litgpt's attention, MLP and RMSNorm, with the same weights and values, in fewer passes over memory while training.

litgpt's are written for every model there is; on a CPU their copies cost as much as a tenth of a step. With a KV cache
litgpt's own code runs.

Legend: B batch, T time, C embedding, H query heads, G key/value heads, D head size.
"""

from collections.abc import Callable
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from litgpt.config import Config
from litgpt.model import GPT, CausalSelfAttention, LLaMAMLP
from litgpt.model import RMSNorm as _RMSNorm
from torch import Tensor

from pipeline.model import cpu_kernels
from pipeline.model.document_attention import attend


class RMSNorm(_RMSNorm):
    """x / rms(x) · weight over the last dimension, computed in float32 (arXiv 1910.07467)."""

    with_kernels = False  # of pipeline/model/cpu_kernels.py

    def forward(self, x: Tensor) -> Tensor:
        if self.with_kernels and not torch.compiler.is_compiling():  # which makes such kernels itself
            return cpu_kernels.rms_norm(x, self.weight, self.eps)
        if x.device.type == "cpu" and x.dtype == torch.float32 and self.weight.dtype == torch.float32:
            return cast(Tensor, _Normalize.apply(x, self.weight, self.eps))
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vecdot(x, x).unsqueeze(-1).div_(x.size(-1)).add_(eps).rsqrt_()
        normal = x * scale
        ctx.save_for_backward(normal, weight, scale)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, weight, scale = ctx.saved_tensors
        grad_weight = (grad * normal).flatten(0, -2).sum(0)
        grad_normal = grad * weight
        along = torch.linalg.vecdot(grad_normal, normal).unsqueeze(-1).div_(normal.size(-1))
        return grad_normal.addcmul_(normal, along, value=-1).mul_(scale), grad_weight, None


def product(layer: Callable[[Tensor], Tensor], x: Tensor, bfloat16: bool) -> Tensor:
    """layer(x) in x's dtype, with its matmuls in bfloat16 if asked for (pipeline/model/products.py chooses)."""
    if not bfloat16:
        return layer(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        return layer(x).to(x.dtype)


class MLP(LLaMAMLP):
    """down(silu(gate(x)) · up(x))."""

    in_bfloat16 = False  # how it multiplies

    def forward(self, x: Tensor) -> Tensor:
        return product(super().forward, x, self.in_bfloat16)


class Attention(CausalSelfAttention):
    """Causal self-attention; rotary embedding on queries and keys together, in the layout that the projection gives."""

    in_bfloat16 = False  # how its projections multiply
    with_kernels = False  # of pipeline/model/cpu_kernels.py

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
    ) -> Tensor:
        if input_pos is not None:
            return super().forward(x, cos, sin, mask, input_pos, input_pos_maxp1)
        n_head, n_group, size = self.config.n_head, self.config.n_query_groups, self.config.head_size
        heads_BTHD = product(self.qkv, x, self.in_bfloat16).unflatten(-1, (n_head + 2 * n_group, size))
        if self.with_kernels and _is_begins(mask) and cpu_kernels.serves(len(x), n_group):
            norms = (self.norm_q.weight, self.norm_k.weight) if self.config.norm_qk else None
            y_BTHD = cpu_kernels.attention(heads_BTHD, cos, sin, norms, self.config.norm_eps, mask, n_head)
            return product(self.proj, y_BTHD.flatten(2), self.in_bfloat16)
        if self.config.norm_qk:
            q_BTHD, k_BTGD, v_BTGD = heads_BTHD.split((n_head, n_group, n_group), dim=2)
            qk_BTHD = torch.cat((self.norm_q(q_BTHD), self.norm_k(k_BTGD)), dim=2)
        else:
            qk_BTHD, v_BTGD = heads_BTHD.split((n_head + n_group, n_group), dim=2)
        qk_BTHD = _Rope.apply(qk_BTHD, cos[:, :, None], sin[:, :, None])
        q_BTHD, k_BTGD = qk_BTHD.split((n_head, n_group), dim=2)
        q, k, v = (t.transpose(1, 2) for t in (q_BTHD, k_BTGD, v_BTGD))
        if n_group != n_head and not _shares_heads(q, mask):
            k, v = (t.repeat_interleave(n_head // n_group, dim=1) for t in (k, v))
        if _is_begins(mask):
            y = attend(q, k, v, mask)
        else:
            grouped = k.size(1) != n_head
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        return product(self.proj, y.transpose(1, 2).flatten(2), self.in_bfloat16)


def _is_begins(mask: Tensor | None) -> TypeGuard[Tensor]:
    """Whether it says where documents begin, and not who may attend to whom."""
    return mask is not None and mask.dtype == torch.int64


def _shares_heads(q: Tensor, mask: Tensor | None) -> bool:
    """Whether a fast kernel takes fewer key than query heads; elsewhere torch would hold all T x T scores."""
    if q.device.type != "cuda":
        return mask is None
    return mask is None and q.element_size() == 2 and torch.cuda.get_device_capability(q.device) >= (8, 0)


class _Rope(torch.autograd.Function):
    """Rotary embedding (arXiv 2104.09864) of halves: (x1, x2) to (x1·cos - x2·sin, x2·cos + x1·sin).

    cos and sin hold each angle twice, as litgpt's tables do; backward rotates the other way.
    """

    @staticmethod
    def forward(ctx: Any, x_BTHD: Tensor, cos_BT1D: Tensor, sin_BT1D: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BT1D, sin_BT1D)
        return _apply_rope(x_BTHD, cos_BT1D, sin_BT1D)

    @staticmethod
    def backward(ctx: Any, grad_BTHD: Tensor) -> tuple[Tensor, None, None]:
        cos_BT1D, sin_BT1D = ctx.saved_tensors
        return _apply_rope(grad_BTHD, cos_BT1D, -sin_BT1D), None, None


def _apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.size(-1) // 2
    x1, x2 = x[..., :half], x[..., half:]
    y = x * cos
    y[..., :half].addcmul_(x2, sin[..., :half], value=-1)
    y[..., half:].addcmul_(x1, sin[..., half:])
    return y.to(x.dtype)


def put_in(gpt: GPT, config: Config) -> None:
    """Replace attention and norms of a GPT that has no weights yet."""

    def norm(size: int) -> RMSNorm:
        return RMSNorm(size, eps=config.norm_eps)

    for i, block in enumerate(gpt.transformer.h):
        block.attn = Attention(config, i)
        if config.norm_qk:
            block.attn.norm_q, block.attn.norm_k = norm(config.head_size), norm(config.head_size)
        block.norm_1, block.norm_2 = norm(config.n_embd), norm(config.n_embd)
    gpt.transformer.ln_f = norm(config.n_embd)
