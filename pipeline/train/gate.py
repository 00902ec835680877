"""The routing gate: routing that must hold once a run's grace has passed, or the stage warns or fails."""

from collections import deque
from dataclasses import asdict
from typing import Any

from pipeline import console
from pipeline.errors import UserError
from pipeline.model.routing import RoutingStats
from pipeline.params import RoutingGate
from pipeline.train.identity import rank

_POOLED = 3  # readings looked at together, so that one small window is no verdict


class Gate:
    """Looks at each reading of the routing; `report` says how it went."""

    def __init__(self, limits: RoutingGate, total_steps: int) -> None:
        self._limits, self._total_steps = limits, total_steps
        self._recent: deque[list[RoutingStats]] = deque(maxlen=_POOLED)
        self._violations: list[str] = []
        self._violated = 0
        self._looks = 0

    def look(self, step: int, layers: list[RoutingStats]) -> None:
        """After `step` steps. Raises UserError where the gate is to fail and the pooled readings break a limit."""
        self._recent.append(layers)
        past_grace = step >= self._limits.grace * self._total_steps and len(self._recent) == _POOLED
        if not layers or self._limits.action == "off" or not past_grace:
            return
        self._looks += 1
        self._violations = _violations(self._limits, [_pooled(stats) for stats in zip(*self._recent, strict=True)])
        if not self._violations:
            return
        self._violated += 1
        words = f"routing at step {step}: {'; '.join(self._violations)}"
        if self._limits.action == "fail":
            raise UserError(
                f"{words}. The last checkpoint stays. A higher train.balance_coef, a lower learning rate or a longer "
                "warm-up spread the load; train.routing_gate has the limits"
            )
        if self._violated == 1 and rank() == 0:
            console.warn(f"{words} (said once; the report counts them)")

    def state(self) -> dict[str, Any]:
        return {
            "recent": [[asdict(stats) for stats in layers] for layers in self._recent],
            "violations": self._violations,
            "violated": self._violated,
            "looks": self._looks,
        }

    def load(self, state: dict[str, Any]) -> None:
        self._recent.extend([RoutingStats(**stats) for stats in layers] for layers in state["recent"])
        self._violations, self._violated, self._looks = state["violations"], state["violated"], state["looks"]

    def verdict(self) -> str:
        """off (also of a model without experts), not looked at, violated (when it last looked) or passed."""
        if self._limits.action == "off" or not any(self._recent):
            return "off"
        if not self._looks:
            return "not looked at"
        return "violated" if self._violations else "passed"

    def report(self) -> dict[str, Any]:
        """The verdict, and each MoE layer's routing over the last readings; warns where there was too little to see."""
        layers = [_pooled(stats) for stats in zip(*self._recent, strict=True)]
        if self.verdict() == "not looked at":
            few = len(self._recent) < _POOLED
            why = (
                f"it needs {_POOLED} readings and the run made {len(self._recent)}; a lower train.log_every makes more"
                if few
                else f"training ended before the run was past its grace of {self._limits.grace:.0%}"
            )
            console.warn(
                f"the routing gate (train.routing_gate.action = {self._limits.action!r}) was not looked at: {why}"
            )
        return {
            "gate": self.verdict(),
            "looks": self._looks,
            "looks_violated": self._violated,
            "violations_at_end": self._violations,
            "layers": [
                {
                    "load_entropy": round(layer.load_entropy, 4),
                    "max_violation": round(layer.max_violation, 4),
                    "dead_experts": layer.dead_experts,
                    "confidence": round(layer.confidence, 4),
                    "tokens_per_expert": layer.tokens_per_expert,
                }
                for layer in layers
            ],
        }


def _pooled(readings: tuple[RoutingStats, ...]) -> RoutingStats:
    """One layer's routing over several readings of about equal length."""
    n = len(readings)
    return RoutingStats(
        tokens_per_expert=[sum(counts) for counts in zip(*(r.tokens_per_expert for r in readings), strict=True)],
        probability=[sum(p) / n for p in zip(*(r.probability for r in readings), strict=True)],
        router_entropy=sum(r.router_entropy for r in readings) / n,
        confidence=sum(r.confidence for r in readings) / n,
    )


def _violations(limits: RoutingGate, layers: list[RoutingStats]) -> list[str]:
    found = []
    for i, layer in enumerate(layers):
        if layer.dead_experts > limits.max_dead_experts:
            found.append(f"MoE layer {i}: {layer.dead_experts} experts see no token (max {limits.max_dead_experts})")
        if layer.max_violation > limits.max_violation:
            found.append(f"MoE layer {i}: violation {layer.max_violation:.2f} (max {limits.max_violation:g})")
        if layer.load_entropy < limits.min_load_entropy:
            found.append(f"MoE layer {i}: load entropy {layer.load_entropy:.2f} (min {limits.min_load_entropy:g})")
    return found
