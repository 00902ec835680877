"""Where training runs: precision and strategy out of params; its processes, their start and their end.

with processes(train, device) as fabric: ...      # another process that ends becomes words
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from subprocess import Popen
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from lightning.fabric.strategies.launchers import subprocess_script
from torch import Tensor
from torch.distributed import DistError, distributed_c10d

from pipeline import console
from pipeline.errors import UserError
from pipeline.params import Train
from pipeline.train.process import Interrupted, rank

T = TypeVar("T")
_TO_MEET = timedelta(minutes=1)  # how long processes wait for each other at the start
_GRACE = 20.0  # seconds in which a process may notice by itself that another of its run is gone
_CHECKPOINT_STAYS = "The last checkpoint stays: the same command goes on from it"


def fabric_for(train: Train, device: str) -> Fabric:
    """Fabric with the strategy of params; `started` launches it.

    Raises UserError, on every rank alike, where those started another number of processes than params ask for.
    bf16-true: the weights are made in bfloat16, so nothing is left for Fabric to convert (it would take the rotary
    tables with it, which must stay float32). 16-mixed: the loop scales the loss itself.
    """
    _refuse_another_world(train)
    precision: Any = {"precision": "bf16-mixed" if train.precision == "bf16-mixed" else "32-true"}
    if train.precision == "16-mixed":
        precision = {"plugins": [MixedPrecision("16-mixed", device, torch.amp.GradScaler(device, enabled=False))]}
    strategy: Any = "auto"
    if train.devices * train.num_nodes > 1:
        wait = _TO_MEET if train.num_nodes == 1 else 10 * _TO_MEET  # a person or a queue starts those of several nodes
        strategy = DDPStrategy(
            start_method="popen", timeout=wait, gradient_as_bucket_view=True, broadcast_buffers=False
        )
        if train.strategy == "fsdp":
            from pipeline.train.wrap import shard  # which takes what rank 0 finds from here

            world = train.devices * train.num_nodes
            strategy = ModelParallelStrategy(shard, world, tensor_parallel_size=1, timeout=wait)
    return Fabric(accelerator=device, devices=train.devices, num_nodes=train.num_nodes, strategy=strategy, **precision)


def _refuse_another_world(train: Train) -> None:
    """All ranks see the same numbers, so all leave; Lightning would raise on some and leave the others waiting."""
    world = train.devices * train.num_nodes
    if SLURMEnvironment.detect() and "RANK" not in os.environ:  # torchrun inside of a Slurm job sets RANK
        started, by = os.environ["SLURM_NTASKS"], "Slurm's job has {} tasks"
    elif "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        started, by = os.environ["WORLD_SIZE"], "WORLD_SIZE (torchrun sets it) is {}"
    else:
        return  # Fabric starts them itself
    here = os.environ.get("LOCAL_WORLD_SIZE", str(train.devices))
    if started == str(world) and here == str(train.devices):
        return
    each = "" if here == str(train.devices) else f", {here} on each node"
    raise UserError(
        f"train.devices = {train.devices} and train.num_nodes = {train.num_nodes} are {world} processes, but "
        f"{by.format(started)}{each}; start as many as params say (torchrun --nproc_per_node {train.devices} "
        f"--nnodes {train.num_nodes}, or srun --ntasks {world} --ntasks-per-node {train.devices}), "
        "or set train.devices and train.num_nodes to what was started"
    )


def _started(train: Train, device: str) -> Fabric:
    """Fabric, launched: it starts the other processes, unless torchrun or Slurm did, and all find each other."""
    fabric = fabric_for(train, device)
    if rank():
        parent = os.getppid()
        _watch("the process that started this one", lambda: os.getppid() != parent, [])
    # Fabric's own watch kills this process without a word.
    subprocess_script._launch_process_observer = _watch_children
    fabric.launch()
    if torch.distributed.is_initialized():  # from here on ranks wait for one that writes a checkpoint to a slow disk
        distributed_c10d._set_pg_timeout(timedelta(minutes=30))
    return fabric


def _watch_children(child_processes: list[Popen[bytes]]) -> None:
    children = child_processes  # which `_end_children` empties
    _watch("another process of this run", lambda: any(child.poll() for child in children), children)


def _watch(what: str, is_gone: Callable[[], bool], children: list[Popen[bytes]]) -> None:
    """End this process and its children where another is gone: gloo notices by itself, NCCL waits for half an hour."""

    def watch() -> None:
        while not is_gone():
            time.sleep(1)
        time.sleep(_GRACE)
        console.fail(f"train, rank {rank()}: {what} has ended. {_CHECKPOINT_STAYS}")
        for child in children:
            child.kill()
        os._exit(2)

    threading.Thread(target=watch, daemon=True, name="watch of the other processes").start()


@contextmanager
def processes(train: Train, device: str) -> Iterator[Fabric]:
    """The processes of this run, while the block lasts: what ends one of them, or a reader, becomes a UserError.

    After a failure in the block no process waits for the others: rank 0 kills those it started.
    """
    fabric = None
    try:
        yield (fabric := _started(train, device))
    except Exception as error:
        if isinstance(error, Interrupted):  # the others were interrupted alike, and leave by themselves
            _leave_group()
            raise
        if fabric is not None:
            _end_children(fabric)
        words = _in_words(error, train)
        if train.devices * train.num_nodes > 1:
            atexit.register(_exit_at_once, error, 2 if words or isinstance(error, UserError) else 1)
        if words:
            raise UserError(f"{words}. {_CHECKPOINT_STAYS}") from None
        raise
    except BaseException:
        if fabric is not None:
            _end_children(fabric)
        _leave_group()
        raise
    _leave_group()


def _in_words(error: Exception, train: Train) -> str | None:
    """What became of another process, where this error says so."""
    text = str(error)
    unread = train.num_workers > 0 and isinstance(error, ConnectionError | EOFError)  # a batch came through a pipe
    if unread or "DataLoader worker" in text:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises this again for each reader that ends
        return (
            f"a process that reads tokens has ended ({text.partition(chr(10))[0]}); it may have run out of memory: "
            f"lower train.num_workers (now {train.num_workers})"
        )
    lost = isinstance(error, DistError) or any(sign in text for sign in ("gloo", "NCCL", "Connection "))
    if train.devices * train.num_nodes > 1 and lost and isinstance(error, RuntimeError | ConnectionError | EOFError):
        return "another process of this run has ended or cannot be reached; if it left a message, that says why"
    return None


def _exit_at_once(error: Exception, code: int) -> None:
    """End this process without taking its group apart, which torch may wait for without end after a failure.

    The last owner of a gloo group joins its threads with the interpreter's lock held, and they may want that lock: so
    `error` is held here, whose frames hold the model and the group.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def from_rank_zero(fabric: Fabric, find: Callable[[], T]) -> T:
    """What rank 0 finds, on every rank. Where that is a UserError, the others leave too, and leave the words to it."""
    found: Any = None
    if fabric.is_global_zero:
        try:
            found = find()
        except UserError as error:
            found = error
    found = fabric.broadcast(found)
    if isinstance(found, UserError):
        if fabric.is_global_zero:
            raise found
        raise SystemExit(0)
    result: T = found
    return result


def reduced(fabric: Fabric, tensor: Tensor, how: str) -> Tensor:
    """The mean, sum or max of the ranks' tensors; a wait for the device where there are several ranks."""
    if fabric.world_size == 1:
        return tensor
    result = fabric.all_reduce(tensor, reduce_op=how)
    assert isinstance(result, Tensor)
    return result


def _end_children(fabric: Fabric) -> None:
    """After a failure here: the processes that Fabric started would wait for this one for ever.

    Killed, since they note the first SIGTERM only; forgotten, since Fabric would kill this one for their exit codes.
    """
    processes = getattr(fabric.strategy.launcher, "procs", [])
    for process in processes:
        process.kill()
    processes.clear()


def _leave_group() -> None:
    """Leave the group, and free it when the interpreter ends, after the model: its last owner joins its threads.

    Those may want the interpreter's lock, which torch lets go where the owner is this object, not where it is DDP's
    reducer within the model.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        held = [torch.distributed.group.WORLD]
        torch.distributed.destroy_process_group()
        atexit.register(held.clear)
