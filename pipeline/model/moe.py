"""The expert layer: route → dispatch → experts → combine, dropless, in the place of litgpt's LLaMAMoE.

    layer = MoE(config); y_BTC = layer(x_BTC); layer.routing     # what the router did, see pipeline/model/routing.py

Tokens are sorted by expert once; each expert then multiplies one contiguous slice. State dicts carry litgpt's names.

Legend: B batch, T time, N = B·T tokens, C embedding, E experts, K experts of a token, S = N·K token–expert
assignments sorted by expert, M of them of one expert, I an expert's width, J = 2·I (gate above up, one matmul).
"""

from typing import Any

import torch
from litgpt.config import Config
from torch import Tensor, nn

from pipeline.model import cpu_kernels, expert_kernels
from pipeline.model.blocks import MLP
from pipeline.model.routing import Router, Routing, autocast_is_on, observe


class MoE(nn.Module):
    """SwiGLU experts behind a router (Shazeer et al. 2017; Mixtral, arXiv 2401.04088; DeepSeek-V3, 2412.19437).

    `config` is what LLaMAMoE takes: a config with `n_expert_groups` has a sigmoid router, else softmax.
    `norm_topk_prob`: the weights of a token's experts sum to one; None: as litgpt does (always with softmax,
    config.norm_topk_prob with sigmoid). Raises ValueError for a choice of expert *groups*, which is not done here.
    """

    in_bfloat16 = False  # how its experts multiply
    with_kernels = False  # of pipeline/model/cpu_kernels.py

    def __init__(self, config: Config, norm_topk_prob: bool | None = None) -> None:
        super().__init__()
        if config.n_topk_groups != config.n_expert_groups:
            raise ValueError(f"n_topk_groups = {config.n_topk_groups}: only all {config.n_expert_groups} are supported")
        kind = "sigmoid" if config.n_expert_groups else "softmax"
        if norm_topk_prob is None:
            norm_topk_prob = kind == "softmax" or config.norm_topk_prob
        n_embd, n_expert, width = (config.n_embd, config.n_expert, config.moe_intermediate_size)
        assert width is not None
        self.width = width
        self.gate = Router(n_embd, n_expert, config.n_expert_per_token, kind, norm_topk_prob)
        self.gate_up_EJC = nn.Parameter(torch.empty(n_expert, 2 * width, n_embd))
        self.down_ECI = nn.Parameter(torch.empty(n_expert, n_embd, width))
        nn.init.normal_(self.gate_up_EJC, std=0.02)
        nn.init.normal_(self.down_ECI, std=0.02)
        self.shared_experts = MLP(config, width * config.n_shared_expert) if config.n_shared_expert else None
        self.routed_scaling_factor = config.routed_scaling_factor
        self.routing: Routing | None = None
        self.register_state_dict_post_hook(_to_litgpt_names)
        self.register_load_state_dict_pre_hook(_from_litgpt_names)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]; in training it leaves its statistics in `self.routing`."""
        x_NC = x_BTC.reshape(-1, x_BTC.size(-1))
        weight_NK, index_NK, logits_NE, probability_NE = self.gate(x_NC)
        if self.routed_scaling_factor != 1.0:
            weight_NK = weight_NK * self.routed_scaling_factor
        gate_up_EJC, down_ECI = self.gate_up_EJC, self.down_ECI  # read once: an adapter computes them anew each time
        if self.with_kernels:
            y_NC, count_E = cpu_kernels.experts(x_NC, weight_NK, index_NK, gate_up_EJC, down_ECI, self.in_bfloat16)
        else:
            order_S, end_E = dispatch(index_NK, down_ECI.size(0))
            count_E = end_E.diff(prepend=end_E.new_zeros(1)).long()
            dtype = torch.bfloat16 if self.in_bfloat16 else _compute_dtype(x_NC)
            y_NC = expert_kernels.experts(
                x_NC.to(dtype), weight_NK.to(dtype), order_S, end_E, gate_up_EJC.to(dtype), down_ECI.to(dtype)
            )
        self.routing = observe(count_E, logits_NE, probability_NE) if self.training else None
        y_BTC = (y_NC.to(x_NC.dtype) if self.in_bfloat16 else y_NC).view(x_BTC.shape)
        return y_BTC if self.shared_experts is None else y_BTC + self.shared_experts(x_BTC)


def dispatch(index_NK: Tensor, n_expert: int) -> tuple[Tensor, Tensor]:
    """Sort assignments by expert: `order_S` (number n·K + k at each sorted place) and where each expert's slice ends.

    `end_E` is int32 and stays on the device; counting with searchsorted needs no atomics and no wait.
    """
    sorted_S, order_S = index_NK.flatten().sort(stable=True)
    experts_E = torch.arange(n_expert, device=index_NK.device)
    return order_S, torch.searchsorted(sorted_S, experts_E, right=True, out_int32=True)


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if autocast_is_on(kind) else x.dtype


def _to_litgpt_names(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    if f"{prefix}gate_up_EJC" not in state:  # with an adapter, whose names are its own
        return
    gate_up_EJC, down_ECI = (state.pop(f"{prefix}gate_up_EJC"), state.pop(f"{prefix}down_ECI"))
    for e in range(gate_up_EJC.size(0)):
        fc_1, fc_2 = gate_up_EJC[e].chunk(2)
        state[f"{prefix}experts.{e}.fc_1.weight"] = fc_1
        state[f"{prefix}experts.{e}.fc_2.weight"] = fc_2
        state[f"{prefix}experts.{e}.proj.weight"] = down_ECI[e]


def _from_litgpt_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    n_expert = module.get_parameter("down_ECI").size(0)
    names = [[f"{prefix}experts.{e}.{part}.weight" for e in range(n_expert)] for part in ("fc_1", "fc_2", "proj")]
    if any(name not in state for part in names for name in part):
        return  # load_state_dict then names what is missing
    fc_1, fc_2, proj = ([state.pop(name) for name in part] for part in names)
    state[f"{prefix}gate_up_EJC"] = torch.stack([torch.cat(pair) for pair in zip(fc_1, fc_2, strict=True)])
    state[f"{prefix}down_ECI"] = torch.stack(proj)
