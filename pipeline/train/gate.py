"""The routing gate: limits on the routing that hold once a run's grace has passed, or the stage warns or fails."""

from collections import deque
from dataclasses import asdict
from typing import Any

from pipeline import console
from pipeline.errors import UserError
from pipeline.model.routing import RoutingStats
from pipeline.params import RoutingGate
from pipeline.train.process import rank

_POOLED = 3  # logs that are checked together, so that one short stretch is no verdict


class Gate:
    """Checks the routing at each log; `report` says how it went. Layers are named by their number from 1."""

    def __init__(self, limits: RoutingGate, total_steps: int, moe_layers: list[int]) -> None:
        self._limits, self._total_steps, self._numbers = limits, total_steps, moe_layers
        self._recent: deque[list[RoutingStats]] = deque(maxlen=_POOLED)
        self._violations: list[str] = []
        self._checks = self._violated = 0

    def check(self, step: int, layers: list[RoutingStats]) -> None:
        """After `step` steps. Raises UserError where the gate is to fail and the pooled routing breaks a limit."""
        self._recent.append(layers)
        past_grace = step >= self._limits.grace * self._total_steps and len(self._recent) == _POOLED
        if not layers or self._limits.action == "off" or not past_grace:
            return
        self._checks += 1
        self._violations = self._broken_limits()
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
            console.warn(f"{words} (shown once; the report counts them)")

    def state(self) -> dict[str, Any]:
        return {
            "recent": [[asdict(stats) for stats in layers] for layers in self._recent],
            "violations": self._violations,
            "violated": self._violated,
            "checks": self._checks,
        }

    def load(self, state: dict[str, Any]) -> None:
        self._recent.extend([RoutingStats(**stats) for stats in layers] for layers in state["recent"])
        self._violations, self._violated, self._checks = state["violations"], state["violated"], state["checks"]

    def verdict(self) -> str:
        """off (also of a model without experts), not checked, violated (at the last check) or passed."""
        if self._limits.action == "off" or not any(self._recent):
            return "off"
        if not self._checks:
            return "not checked"
        return "violated" if self._violations else "passed"

    def report(self) -> dict[str, Any]:
        """The verdict, and each MoE layer's routing over the last logs; warns where there was too little to check."""
        if self.verdict() == "not checked":
            why = (
                f"the check takes the last {_POOLED} logs, and the run has {len(self._recent)}; lower train.log_every"
                if len(self._recent) < _POOLED
                else f"training ended within the grace of {self._limits.grace:.0%} of the run"
            )
            console.warn(f"the routing was not checked (train.routing_gate.action = {self._limits.action!r}): {why}")
        return {
            "gate": self.verdict(),
            "checks": self._checks,
            "checks_violated": self._violated,
            "violations_at_end": self._violations,
            "layers": [
                {
                    "layer": number,
                    "load_entropy": round(layer.load_entropy, 4),
                    "max_violation": round(layer.max_violation, 4),
                    "dead_experts": layer.dead_experts,
                    "confidence": round(layer.confidence, 4),
                    "tokens_per_expert": layer.tokens_per_expert,
                }
                for number, layer in self._pooled()
            ],
        }

    def _pooled(self) -> list[tuple[int, RoutingStats]]:
        """The number of each MoE layer and its routing over the last logs, which are of about equal length."""
        pooled = []
        for number, logs in zip(self._numbers, zip(*self._recent, strict=True), strict=False):
            count = [sum(counts) for counts in zip(*(log.tokens_per_expert for log in logs), strict=True)]
            probability = [sum(p) / len(logs) for p in zip(*(log.probability for log in logs), strict=True)]
            entropy = sum(log.router_entropy for log in logs) / len(logs)
            confidence = sum(log.confidence for log in logs) / len(logs)
            pooled.append((number, RoutingStats(count, probability, entropy, confidence)))
        return pooled

    def _broken_limits(self) -> list[str]:
        limits, found = self._limits, []
        for i, layer in self._pooled():
            if layer.dead_experts > limits.max_dead_experts:
                found.append(f"layer {i}: {layer.dead_experts} experts get no token (max {limits.max_dead_experts})")
            if layer.max_violation > limits.max_violation:
                found.append(f"layer {i}: violation {layer.max_violation:.2f} (max {limits.max_violation:g})")
            if layer.load_entropy < limits.min_load_entropy:
                found.append(f"layer {i}: load entropy {layer.load_entropy:.2f} (min {limits.min_load_entropy:g})")
        return found
