"""The training loop: from tokens to a litgpt checkpoint folder, resumable at any moment.

report = train(params, tokens, tokenizer, into, runs=Path("checkpoints"), live=…, plots=…, run=None, resume="auto")
"""

import os
import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from pipeline import console, tracking
from pipeline.errors import UserError
from pipeline.model import build, checkpoint_folder, cpu_kernels, products, size
from pipeline.model.layout import moe_layers
from pipeline.params import Params, Train
from pipeline.train import data, hardware, kernels, launch, memory, optimizers, plan
from pipeline.train import resume as resumption
from pipeline.train.gate import Gate
from pipeline.train.history import History, plots_of
from pipeline.train.process import Interrupted, Interruption, Stopping, keep_freed_memory, leave_busy_cores
from pipeline.train.step import Objective, Step, StepMetrics
from pipeline.train.wrap import Compiling, recompute_blocks

_SHARE_OF_PEAK = {"cpu": 0.35, "cuda": 0.3, "mps": 0.25}  # for the estimate before anything was measured
_SHARE_WITH_PRODUCTS = 0.5  # of a CPU's peak in float32, with matmuls in bfloat16


def train(
    params: Params,
    tokens: Path,
    tokenizer: Path,
    into: Path,
    *,
    runs: Path,
    live: Path,
    plots: Path | None,
    run: tracking.Run | None = None,
    resume: str = "auto",
    adapter: plan.Adapter | None = None,
    before: Callable[[int], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train as `params` say and write `into`, a litgpt checkpoint folder; return the report (empty but on rank 0).

    resume: auto (the newest whole checkpoint of the same run, if any), never, or the path of a checkpoint.
    adapter: what trains beside train.initial_checkpoint's weights, which are then frozen; None: all weights train.
    before: called on rank 0 with the vocabulary size before a new run begins; check: on rank 0 after each checkpoint; a
    UserError of theirs ends training. Raises UserError before anything is written where params, data and machine do
    not fit, and later where the loss stays not finite, memory runs out or the routing gate fails; Interrupted after
    SIGINT or SIGTERM.
    """
    device, asked = hardware.device_of(params.train), params
    params = params.model_copy(update={"train": hardware.settled(params.train, device)})
    planned = plan.make(params, tokens, tokenizer, adapter)
    for samples in (planned.samples, planned.val):
        samples.verify()
    if device == "cpu":
        keep_freed_memory()
    with launch.processes(params.train, device) as fabric:

        def find() -> resumption.Beginning:
            plan.remarks(planned, params)
            if device == "cpu" and fabric.world_size == 1:
                leave_busy_cores()
            begin = resumption.find(asked, planned, tokens, tokenizer, runs, resume)
            if begin.checkpoint is None and before is not None:
                before(planned.vocab_size)
            return begin

        built = size.resolved(params.model, planned.vocab_size)  # of a dense baseline, not what it is compared with
        begin = launch.from_rank_zero(fabric, find)
        rows = size.padded_rows(params.model, planned.vocab_size)

        def micro_batch() -> Train:
            free = memory.available(str(fabric.device), params.train.devices)
            before = begin.checkpoint.micro_batch_size if begin.checkpoint else None
            return memory.with_micro_batch(built, params.train, planned.weights, rows, free, before)

        train = launch.from_rank_zero(fabric, micro_batch)
        params = params.model_copy(update={"train": train})
        sizes = (built, train, planned.weights, rows, fabric.device)
        with memory.explained(*sizes), Interruption() as interruption:
            trainer = _Trainer(params, planned, fabric, begin, interruption, check, asked.train)
            return trainer.run(into, tokenizer, live, plots, run)


class _Trainer:
    """One run on one rank: what is trained, how far it is, and what is written on the way."""

    def __init__(
        self,
        params: Params,
        planned: plan.Plan,
        fabric: Fabric,
        begin: resumption.Beginning,
        interruption: Interruption,
        check: Callable[[], None],
        asked: Train,
    ) -> None:
        self.asked = asked
        self.params, self.plan, self.fabric, self.begin = params, planned, fabric, begin
        self.config, self.interruption, self.check = params.train, interruption, check
        random.seed(self.config.seed)
        np.random.seed(self.config.seed % 2**32)
        torch.manual_seed(self.config.seed)
        self.gpt = self._model()
        self.objective = Objective(self.gpt, self.config, planned.eos_id, planned.samples.flags)
        self.kernels = self._kernels()
        self.module = fabric.setup_module(self.objective)
        self.optimizers = optimizers.build(self.objective, self.config.optimizer, fabric.device)
        self.step = Step(fabric, self.module, self.optimizers, self.config)
        self.moe_layers = [i + 1 for i in moe_layers(self.gpt.params)]
        self.gate = Gate(self.config.routing_gate, planned.total_steps, self.moe_layers)
        self.done, self.non_finite_steps, self._elapsed = 0, 0, 0.0
        self.validated = -1  # the step of the last validation
        self.last: dict[str, float] = {}  # the latest of each metric
        self.products: list[str] | None = None
        compiled = self._restore(begin.checkpoint) if begin.checkpoint else None
        products.use(self.gpt, self._products(), self.kernels)
        self.first = self.done
        work = planned.total_steps * planned.tokens_per_step * planned.flops_per_token / fabric.world_size
        quick = bool(self.products) and self.kernels
        self.compiling = Compiling(self.gpt, self.config.compile, fabric, work, compiled, quick)
        self._resumed_at: float | None = None  # while the loop runs

    def _model(self) -> build.MoEGPT:
        config, model, device = self.config, self.params.model, self.fabric.device
        dtype = torch.bfloat16 if config.precision == "bf16-true" else None
        gpt = build.build(model, self.plan.vocab_size, seed=config.seed, device=device, dtype=dtype)
        if config.initial_checkpoint and self.begin.checkpoint is None:
            resumption.take_weights(gpt, Path(config.initial_checkpoint))
        if self.plan.adapter:
            self.plan.adapter.put_in(gpt, config.seed)
        if config.activation_checkpointing:
            recompute_blocks(gpt)
        return gpt

    def _kernels(self) -> bool:
        """Whether what is between the products is computed by the compiled kernels of a CPU."""
        if self.config.precision != "auto" or self.fabric.device.type != "cpu":
            return False
        if (why := kernels.refused(self.objective)) and self.fabric.is_global_zero:
            console.say(f"train: no compiled kernels, which make a step shorter by a third or more: {why}")
        return why is None

    def _products(self) -> list[str]:
        """The kinds of product that are computed in bfloat16; a run that goes on computes them as it did before."""
        if self.config.precision != "auto":
            return []
        if self.products is None:
            tokens = self.config.micro_batch * self.config.block_size
            gains = launch.from_rank_zero(self.fabric, lambda: products.probe(self.gpt, tokens, self.config.loss_chunk))
            self.products = products.worthwhile(gains)
            if self.fabric.is_global_zero:
                tried = ", ".join(f"{kind} {gain:.1f} ×" for kind, gain in gains.items())
                chosen = ", ".join(self.products) or "nothing"
                console.say(f"train: matmuls in bfloat16 for {chosen} (tried beside float32, faster by: {tried})")
        return self.products

    def run(
        self, into: Path, tokenizer: Path, live: Path, plots: Path | None, tracker: tracking.Run | None
    ) -> dict[str, Any]:
        """Train to the end, or to that of this session; save the model, return the report."""
        self.history: History | None = None
        if self.fabric.is_global_zero:
            resumption.forget_after(self.begin.folder, self.done, self.begin.checkpoint)
            self.history = History(self.begin.folder, live, tracker, self.moe_layers, self.done)
        self.peak, self.peak_origin = hardware.peak_flops(
            self.fabric.device, "bf16-mixed" if self.products else self.config.precision
        )
        self._announce()
        reason = self._steps()
        if not self._is_saved():
            self._save()
        model = self._whole_model()
        if self.history is None:
            return {}
        save = self.plan.adapter.save if self.plan.adapter else checkpoint_folder.save
        save(model, into, tokenizer)
        routing = self.gate.report()
        loads = [layer["tokens_per_expert"] for layer in routing["layers"]]
        if plots is not None:
            plots_of(self.history, loads, plots)
        if tracker is not None and loads:
            tracker.log_heatmap("expert load", loads, tokens=self._tokens(), x="expert", y="MoE layer")
        self.history.close()
        resumption.forget_other_finished_runs(self.begin.folder)
        if not self._is_finished():
            console.warn(
                f"train: stopped by train.max_minutes = {self.config.max_minutes:g} after step {self.done} of "
                f"{self.plan.total_steps}; to go on for as long again: dvc repro --force --single-item train"
            )
        return self._report(reason, routing)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _steps(self) -> str:
        """Train until a bound is met; say which. What was trained last is logged and validated when it ends."""
        config, total, fabric = self.config, self.plan.total_steps, self.fabric
        pin = fabric.device.type == "cuda"
        stopping = Stopping(fabric, self.interruption, config.max_minutes)
        reason = self.plan.bound if self._is_finished() else None
        left = (total - self.done) * self.plan.tokens_per_step
        self._resumed_at = self._logged_at = time.perf_counter()
        self._paused = 0.0
        self.module.train()
        batches = data.batches(self.plan.samples, config, self.done, fabric.global_rank, fabric.world_size, pin)
        with closing(batches), console.progress("train", left, "tokens") as advance:
            while reason is None:
                lr = optimizers.set_learning_rates(self.optimizers, config.schedule, self.done, total)
                self.step(self.done, batches)
                self.done += 1
                self.compiling.after_step(total - self.done)
                signal, time_is_over = stopping.after_step()
                if self._is_finished():
                    reason = self.plan.bound
                elif time_is_over:
                    reason = "max_minutes"
                validate = reason is not None or bool(config.eval_every and self.done % config.eval_every == 0)
                if validate or self.done % config.log_every == 0:
                    self._log(lr, self._pause(self._validate) if validate else None)
                elif fabric.device.type == "cpu":  # where reading them costs nothing
                    self._refuse_non_finite_steps(*self.step.metrics.non_finite_in_row())
                if fabric.is_global_zero:
                    loss = self.last.get("lm_loss")
                    advance(self.plan.tokens_per_step, f"loss {loss:.3f}" if loss is not None else "")
                if signal:
                    self._save()
                    raise Interrupted(signal, self.done, total, self.begin.folder)
                if reason is None and self.done % config.checkpoint_every == 0:
                    self._pause(self._save)
                    launch.from_rank_zero(fabric, self.check)  # all ranks meet here, whoever has something to check
        if self.validated != self.done:  # a checkpoint that was named is at the end of this run without having seen one
            self.last["val_loss"] = self._validate()
        self._elapsed, self._resumed_at = self.elapsed, None
        return reason

    def _precision(self) -> str:
        """As the parameters say, or what `auto` came to on a CPU."""
        if self.config.precision != "auto":
            return self.config.precision
        return "32-true, matmuls in bfloat16" if self.products else "32-true"

    def _is_finished(self) -> bool:
        return self.done >= self.plan.total_steps

    def _pause(self, work: Any) -> Any:
        """Do what is no training; it does not count in the tokens per second."""
        begun = time.perf_counter()
        result = work()
        self._paused += time.perf_counter() - begun
        return result

    @torch.no_grad()
    def _validate(self) -> float:
        """Loss on the val samples that `eval_samples` asks for, nats per token."""
        config, fabric = self.config, self.fabric
        self.validated = self.done
        self.module.eval()
        total: Any = torch.zeros(2, device=fabric.device)
        ranks = (fabric.global_rank, fabric.world_size)
        for tokens_BS in data.spread(self.plan.val, config.eval_samples, *ranks, config.micro_batch):
            loss, _ = self.module(tokens_BS.to(fabric.device))
            weight = self.objective.weight(tokens_BS).to(fabric.device)
            total += torch.stack([loss.float() * weight, weight])
        self.module.train()
        total = launch.reduced(fabric, total, "sum")
        return float(total[0] / total[1])

    # --- what is reported ---------------------------------------------------------------------------------------------

    def _announce(self) -> None:
        if not self.fabric.is_global_zero:
            return
        count, world = self.plan.count, self.fabric.world_size
        steps = self.plan.total_steps - self.done
        if self.begin.checkpoint:
            state = "this run was finished before" if steps == 0 else f"resumed from step {self.done}"
            again = "; --resume never trains it again" if steps == 0 else ""
            console.say(f"train: {state} ({self.begin.checkpoint.path}){again}")
        if self.asked.micro_batch_size == "auto":
            console.say(f"train: micro batches of {self.config.micro_batch}, the most that memory suffices for")
        tokens = steps * self.plan.tokens_per_step
        rate = self.peak * world * _SHARE_OF_PEAK[self.fabric.device.type]
        if self.products and not self.kernels:  # what is between the matmuls is as slow as ever
            rate = hardware.peak_flops(self.fabric.device, "32-true")[0] * world * _SHARE_WITH_PRODUCTS
        device = str(self.fabric.device) if world == 1 else f"{world} × {self.fabric.device.type}"
        size = f"{count.total / 1e6:,.2f} M parameters ({count.active / 1e6:,.2f} M active)"
        to_go = f"{tokens:,} tokens to go ({steps:,} steps of {self.plan.tokens_per_step:,})"
        console.say(
            f"train: {size}, {to_go}, {self.plan.epochs:.2f} epochs in all, on {device} in {self._precision()}; "
            f"about {console.duration(tokens * self.plan.flops_per_token / rate)}"
        )

    def _log(self, lr: float, val_loss: float | None) -> None:
        seen: StepMetrics = self.step.metrics.read(self.fabric)
        self._refuse_non_finite_steps(seen.non_finite_in_row, seen.first_non_finite)
        self.non_finite_steps += seen.non_finite_steps
        now = time.perf_counter()
        rate = seen.steps * self.plan.tokens_per_step / max(1e-9, now - self._logged_at - self._paused)
        self._logged_at, self._paused = now, 0.0
        weighted = self.config.balance_coef * seen.balance + self.config.z_loss_coef * seen.z
        metrics: dict[str, float | None] = {
            "step": self.done,
            "tokens": self._tokens(),
            "seconds": round(self.elapsed, 3),
            "loss": seen.lm + weighted,
            "val_loss": val_loss,
            "lm_loss": seen.lm,
            "lr": lr,
            "grad_norm": seen.grad_norm,
            "tokens_per_second": rate,
            "mfu": rate * self.plan.flops_per_token / (self.peak * self.fabric.world_size),
            "non_finite_steps": self.non_finite_steps,
        }
        if seen.layers:
            metrics |= {
                "balance_loss": seen.balance,
                "z_loss": seen.z,
                "load_entropy": min(layer.load_entropy for layer in seen.layers),
                "max_violation": max(layer.max_violation for layer in seen.layers),
                "dead_experts": max(layer.dead_experts for layer in seen.layers),
                "router_confidence": sum(layer.confidence for layer in seen.layers) / len(seen.layers),
            }
        known = {name: value for name, value in metrics.items() if value is not None}
        self.last |= known
        if self.history is not None:
            self.history.add(known, seen.layers)
        self.gate.check(self.done, seen.layers)

    def _refuse_non_finite_steps(self, in_row: int, first: int) -> None:
        if in_row <= self.config.max_non_finite_steps:
            return
        micro = data.positions(self.config, first, self.fabric.global_rank, self.fabric.world_size)
        samples = [int(i) for positions in micro for i in self.plan.samples.index(positions)]
        raise UserError(
            f"the gradient was not finite (nan or inf) in {in_row} steps in a row, from step {first} on "
            f"(train.max_non_finite_steps = {self.config.max_non_finite_steps}); those steps were left out and the "
            f"checkpoints in {self.begin.folder} are good. Step {first} read samples {samples} of data/tokens/train. "
            f"Try a lower train.optimizer.lr (now {self.config.optimizer.lr:g}), a longer warm-up, "
            f"train.precision bf16-mixed, or train.optimizer.grad_clip below {self.config.optimizer.grad_clip or 1:g}"
        )

    def _report(self, reason: str, routing: dict[str, Any]) -> dict[str, Any]:
        count, tokens = self.plan.count, self._tokens()
        rate = tokens / self.elapsed if self.elapsed else 0.0
        return {
            "loss": self.last.get("lm_loss"),
            "val_loss": self.last.get("val_loss"),
            "steps": self.done,
            "tokens": tokens,
            "epochs": tokens / (self.plan.samples.count * self.plan.samples.block_size),
            "stopped_by": reason,
            "seconds": self.elapsed,
            "tokens_per_second": rate,
            "mfu": rate * self.plan.flops_per_token / (self.peak * self.fabric.world_size),
            "peak_flops": {"per_device": self.peak, "origin": self.peak_origin},
            "flops_per_token": self.plan.flops_per_token,
            "parameters": {"total": count.total, "active": count.active},
            "non_finite_steps": self.non_finite_steps,
            "device": self.fabric.device.type,
            "devices": self.fabric.world_size,
            "precision": self._precision(),
            "products_in_bfloat16": self.products or [],
            "compiled_kernels": self.kernels,
            "threads": torch.get_num_threads(),
            "compiled": self.compiling.done,
            "resumed_from": self.first if self.begin.checkpoint else None,
            "routing": routing,
        }

    # --- how far it is ------------------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before a resumption included."""
        return self._elapsed + (0.0 if self._resumed_at is None else time.perf_counter() - self._resumed_at)

    def _tokens(self) -> int:
        return self.done * self.plan.tokens_per_step

    def _is_saved(self) -> bool:
        begin = self.begin.checkpoint
        there = begin is not None and begin.path.parent.resolve() == self.begin.folder.resolve()
        return there and self.done == self.first

    def _save(self) -> None:
        """Write a checkpoint; every rank must call it."""
        generators: list[Any] = [resumption.random_state()]
        if self.fabric.world_size > 1:
            generators = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(generators, resumption.random_state())
        state = {
            "model": resumption.model_state(self.gpt),
            "optimizers": [resumption.optimizer_state(optimizer) for optimizer in self.optimizers],
            "loss_scale": self.step.scale.state() if self.step.scale else None,
            "random": generators,
            "threads": torch.get_num_threads(),
            "gate": self.gate.state(),
            "last": self.last,
            "non_finite_steps": self.non_finite_steps,
            "compiled": self.compiling.done,
            "elapsed": self.elapsed,
            "validated": self.validated,
            "products": self.products,
            "kernels": cpu_kernels.key() if self.kernels else None,
            "micro_batch_size": self.config.micro_batch,
        }
        if self.fabric.is_global_zero:
            keep = 1 if self._is_finished() else self.config.keep_checkpoints
            resumption.save(self.begin, self.done, self.plan.total_steps, state, keep)
        self.fabric.barrier()

    def _restore(self, checkpoint: resumption.Checkpoint) -> bool:
        """Take up the state of the checkpoint; return whether that run was compiled."""
        state = checkpoint.load()
        resumption.load_model_state(self.gpt, state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            resumption.load_optimizer_state(optimizer, saved)
        if self.step.scale and state["loss_scale"]:
            self.step.scale.load(state["loss_scale"])
        if len(state["random"]) == self.fabric.world_size:
            resumption.load_random_state(state["random"][self.fabric.global_rank])
        self._use_threads(state["threads"])
        self.gate.load(state["gate"])
        self.done, self.last, self.non_finite_steps = checkpoint.step, state["last"], state["non_finite_steps"]
        self._elapsed, self.validated = state["elapsed"], state["validated"]
        if self.config.precision == "auto":  # it may have begun on another kind of device
            self.products = state["products"]
            self._use_kernels(state["kernels"])
        return bool(state["compiled"])

    def _use_kernels(self, before: str | None) -> None:
        """With compiled kernels, sums have other last digits than without, or with those of another compiler."""
        if before and self.fabric.is_global_zero and before != (cpu_kernels.key() if self.kernels else None):
            how = "with those of another source, compiler or processor" if self.kernels else "without"
            console.say(f"train: begun with compiled kernels, it goes on {how}: last digits may differ now")
        self.kernels = self.kernels and bool(before)

    def _use_threads(self, before: int) -> None:
        """On a CPU, sums of another number of threads have other last digits."""
        here = torch.get_num_threads()
        if self.fabric.device.type != "cpu" or before == here:
            return
        if before <= (os.cpu_count() or 1):
            torch.set_num_threads(before)
            words = f"computing with {before} threads, as before it was stopped (here it would be {here})"
        else:
            words = f"it computed with {before} threads before it was stopped, now with {here}: last digits may differ"
        if self.fabric.is_global_zero:
            console.say(f"train: {words}")

    def _whole_model(self) -> build.MoEGPT:
        """The model with all of its weights in this process (with FSDP each rank has a share); on every rank."""
        if self.config.strategy != "fsdp":
            return self.gpt
        state = resumption.model_state(self.gpt)
        dtype = next(iter(state.values())).dtype
        gpt = build.materialize(build.on_meta(self.params.model, self.plan.vocab_size, dtype))
        resumption.load_model_state(gpt, state)
        return gpt
