"""Changes of training that were tried and are no parameter: `python -m benchmarks.trials NAME` trains with one of them.

Each puts itself into the pipeline's own train stage, which then runs in the folder at hand; benchmarks/recipe.py calls
it. What they came to is in docs/recipe.md.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import stages.train
from pipeline.model import build
from pipeline.model.blocks import product
from pipeline.train import loop, losses, optimizers
from pipeline.train.step import Objective, Step

_RAMP = 400  # steps, a third of the default run
_KEPT = 0.99  # of an average of weights, each step
_AHEAD = 0.3  # what the loss of the token after the next counts


def _initialized(change: Callable[[build.MoEGPT, str, Tensor], float]) -> None:
    """Weights begin `change` times as large."""
    before = build._initialize

    @torch.no_grad()
    def initialize(gpt: build.MoEGPT, seed: int) -> None:
        before(gpt, seed)
        for name, parameter in gpt.named_parameters():
            parameter.mul_(change(gpt, name, parameter))

    build._initialize = initialize


def embedding_of_unit_size() -> None:
    _initialized(lambda gpt, name, p: p.size(-1) ** 0.5 if "wte" in name else 1.0)


def residual_by_depth() -> None:
    """GPT-2's 1 / sqrt(2 · layers) for what adds to the residual, where ours is a tenth."""
    _initialized(lambda gpt, name, p: 10 / (2 * gpt.config.n_layer) ** 0.5 if _adds(name) else 1.0)


def residual_at_full_size() -> None:
    _initialized(lambda gpt, name, p: 10.0 if _adds(name) else 1.0)


def experts_at_full_weight() -> None:
    """As if weights of a token's experts, which are two by default, summed to two and not to one.

    So they add as much as a dense MLP of their width does. It is the same as experts' last matrices that begin twice as
    large, and are trained at twice the rate.
    """
    scale = 2.0
    _initialized(lambda gpt, name, p: scale if name.endswith("down_ECI") else 1.0)
    before = optimizers._decaying

    def decaying(named: Any, chosen: Any) -> list[dict[str, Any]]:
        last = [p for name, p in named if name.endswith("down_ECI")]
        others = before([(name, p) for name, p in named if not name.endswith("down_ECI")], chosen)
        group = {"params": last, "lr": chosen.lr * scale, "weight_decay": chosen.weight_decay / scale}
        return [*others, group] if last else others

    optimizers._decaying = decaying


def _adds(name: str) -> bool:
    return name.endswith(("proj.weight", "down_ECI"))


def _at_first(parts: Callable[[Tensor], list[Tensor]]) -> None:
    """For the first third, what `parts` makes of a batch: a step each."""
    step = Step.__call__

    def call(self: Step, number: int, batches: Iterator[Tensor]) -> None:
        if number >= _RAMP:
            return step(self, number, batches)
        for part in parts(next(batches)):
            step(self, number, iter([part]))

    Step.__call__ = call  # type: ignore[method-assign]


def batch_ramp() -> None:
    _at_first(lambda tokens_BS: list(tokens_BS.chunk(2)))


def length_ramp() -> None:
    def halves(tokens_BS: Tensor) -> list[Tensor]:
        half = (tokens_BS.size(1) - 1) // 2  # a sample ends with the target of its last token
        return [torch.cat((tokens_BS[:, : half + 1], tokens_BS[:, half : 2 * half + 1]))]

    _at_first(halves)


def average_of_weights() -> None:
    """Validation sees an average over the last hundred steps or so."""
    step, validate = Step.__call__, loop._Trainer._validate
    average: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def call(self: Step, number: int, batches: Iterator[Tensor]) -> None:
        with torch.enable_grad():
            step(self, number, batches)
        for parameter in self._parameters:
            average.setdefault(parameter, parameter.clone()).lerp_(parameter, 1 - _KEPT)

    def swap() -> None:
        for parameter, kept in average.items():
            parameter.data, average[parameter] = kept, parameter.data

    def of_average(self: Any) -> float:
        swap()
        found = validate(self)
        swap()
        return found

    Step.__call__ = call  # type: ignore[method-assign]
    loop._Trainer._validate = of_average  # type: ignore[method-assign]


def token_after_the_next() -> None:
    """Multi-token prediction: one more loss, of the token after the next, from a projection of its own."""
    hidden, forward, begin = build.MoEGPT.hidden, Objective.forward, Objective.__init__
    seen: dict[str, Tensor] = {}

    def keep(self: build.MoEGPT, *inputs: Any) -> Tensor:
        seen["x_BTC"] = hidden(self, *inputs)
        return seen["x_BTC"]

    def make(self: Objective, gpt: build.MoEGPT, *rest: Any, **named: Any) -> None:
        begin(self, gpt, *rest, **named)
        self.ahead = nn.Parameter(torch.eye(gpt.config.n_embd))

    def both(self: Objective, tokens_BS: Tensor) -> Any:
        total, parts = forward(self, tokens_BS)
        if not self.training:
            return total, parts
        target_BT = torch.full_like(tokens_BS[:, 1:], losses.IGNORE)
        target_BT[:, :-1] = torch.where(tokens_BS[:, 1:-1] == self.eos_id, losses.IGNORE, tokens_BS[:, 2:])
        head_VC = self.gpt.lm_head.weight

        def loss(x_BTC: Tensor) -> Tensor:
            return losses.cross_entropy(x_BTC, head_VC, target_BT, self._chunk, self.gpt.with_kernels)

        ahead_CC: Any = self.ahead
        ahead = product(loss, seen["x_BTC"] @ ahead_CC, self.gpt.in_bfloat16)
        return total + _AHEAD * ahead, parts

    build.MoEGPT.hidden = keep  # type: ignore[method-assign,assignment]
    Objective.__init__ = make  # type: ignore[method-assign]
    Objective.forward = both  # type: ignore[method-assign]


TRIALS = {
    trial.__name__: trial
    for trial in (
        embedding_of_unit_size,
        residual_by_depth,
        residual_at_full_size,
        experts_at_full_weight,
        batch_ramp,
        length_ramp,
        average_of_weights,
        token_after_the_next,
    )
}


if __name__ == "__main__":
    TRIALS[sys.argv.pop()]()
    stages.train.app()
