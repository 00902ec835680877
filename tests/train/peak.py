"""In a process of its own: the bytes of three steps on a CPU as they are foretold, and as they are at their peak."""

import sys
import threading
from pathlib import Path

import psutil
import torch

from pipeline import params
from pipeline.model import build, products, size
from pipeline.train import calibration, kernels, launch, memory, optimizers, plan
from pipeline.train.step import Objective, Step

parameters = params.load(Path(sys.argv[1]))
model, train = parameters.model, parameters.train.model_copy(update={"device": "cpu"})
vocab_size = parameters.tokenizer.vocab_size or 2048
resolved, rows = size.resolved(model, vocab_size), size.padded_rows(model, vocab_size)
foretold = memory.needed(resolved, train, plan.weights(model, vocab_size, None), rows).total

fabric = launch.fabric_for(train, "cpu")
(torch.rand(64, 64) @ torch.rand(64, 64)).sum()
process = psutil.Process()
before = process.memory_info().rss
objective = Objective(build.build(model, vocab_size, seed=1), train, eos_id=0)
if train.precision == "auto":
    products.use(objective.gpt, products.KINDS, kernels.refused(objective) is None)
module = fabric.setup_module(objective)
step = Step(fabric, module, optimizers.build(objective, train.optimizer, fabric.device), train)
batches = calibration.batches(train, vocab_size)
peak, over = 0, threading.Event()


def watch() -> None:
    global peak
    while not over.wait(0.001):
        peak = max(peak, process.memory_info().rss)


watching = threading.Thread(target=watch)
watching.start()
for number in range(3):
    step(number, batches)
over.set()
watching.join()
print(foretold, peak - before)
