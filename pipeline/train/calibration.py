"""How fast this machine trains a model: real steps on made-up tokens for some seconds (`moe plan --measure`)."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.model import build, products, size
from pipeline.params import Model, Train
from pipeline.train import hardware, kernels, launch, memory, optimizers, plan
from pipeline.train.process import leave_busy_cores
from pipeline.train.step import Objective, Step
from pipeline.train.wrap import recompute_blocks

_DOCUMENT = 200  # tokens of a made-up document
_WARM_UP = 2  # steps that do not count
_EOS = 0


def tokens_per_second(
    model: Model, train: Train, vocab_size: int, adapter: plan.Adapter | None = None, seconds: float = 5.0
) -> float:
    """Of one device, not compiled; steps have one micro batch, so a step of several is a little faster.

    Nothing is kept. Raises UserError for a device that is not here, and where memory does not suffice.
    """
    device = hardware.device_of(train)
    alone: dict[str, Any] = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    train = hardware.settled(train, device)
    fabric = launch.fabric_for(train.model_copy(update=alone), device)
    if device == "cpu":
        leave_busy_cores()
    resolved, rows = size.resolved(model, vocab_size), size.padded_rows(model, vocab_size)
    weights = plan.weights(resolved, vocab_size, adapter)
    train = memory.with_micro_batch(resolved, train, weights, rows, memory.available(str(fabric.device), train.devices))
    train = train.model_copy(update=alone | {"global_batch_size": train.micro_batch})
    with memory.explained(resolved, train, weights, rows, fabric.device):
        dtype = torch.bfloat16 if train.precision == "bf16-true" else None
        gpt = build.build(model, vocab_size, seed=train.seed, device=fabric.device, dtype=dtype)
        if adapter:
            adapter.put_in(gpt, train.seed)
        if train.activation_checkpointing:
            recompute_blocks(gpt)
        tokens = train.micro_batch * train.block_size
        objective = Objective(gpt, train, _EOS)
        if train.precision == "auto":
            gains, with_kernels = products.probe(gpt, tokens, train.loss_chunk), kernels.refused(objective) is None
            products.use(gpt, products.worthwhile(gains), with_kernels)
        module = fabric.setup_module(objective)
        module.train()
        step = Step(fabric, module, optimizers.build(objective, train.optimizer, fabric.device), train)
        random = batches(train, vocab_size)
        done, begun = 0, 0.0
        while not begun or time.perf_counter() - begun < seconds:
            step(done, random)
            done += 1
            if done == _WARM_UP:
                hardware.wait(fabric.device)
                begun = time.perf_counter()
        hardware.wait(fabric.device)
        return (done - _WARM_UP) * tokens / (time.perf_counter() - begun)


def batches(train: Train, vocab_size: int) -> Iterator[Tensor]:
    """Micro batches of random tokens in documents of a common length, [B, T + 1] each."""
    generator = torch.Generator().manual_seed(train.seed)
    while True:
        shape = (train.micro_batch, train.block_size + 1)
        tokens_BS = torch.randint(1, vocab_size, shape, generator=generator)
        tokens_BS.view(-1)[::_DOCUMENT] = _EOS
        yield tokens_BS
