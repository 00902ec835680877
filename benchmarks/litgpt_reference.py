"""litgpt's own pretraining on batches of ours, as a reference: `litgpt.pretrain.main`.

Worked around, for it to run at all: `measure_flops`, which raises on MoE, gives 1; `save_checkpoint`, which parses the
command line again, does nothing; `max_steps`, which is not kept, is given as `max_tokens`.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def pretrain(
    parameters: Any, batches: Callable[[], Iterator[Any]], val: list[Any], steps: int, warmup: int, out: Path
) -> float:
    """Train the model of `parameters` for so many steps on tokens_BS; return its loss over `val` at the end.

    Its rate, optimizer, batch, precision and initialization are those of `parameters` and litgpt.
    """
    import torch
    from lightning.fabric import Fabric
    from litgpt import pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from torch.utils.data import DataLoader, IterableDataset

    from pipeline.model import build
    from pipeline.train import hardware

    train, optimizer = parameters.train, parameters.train.optimizer

    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            return batches()

    class Tokens(DataModule):
        def connect(self, *args: Any, **kwargs: Any) -> None: ...

        def train_dataloader(self) -> Any:
            return DataLoader(Stream(), batch_size=None)

        def val_dataloader(self) -> Any:
            return DataLoader(val, batch_size=None)  # type: ignore[arg-type]

    losses: list[Any] = []
    validate = pretrain.validate

    def noted(*args: Any, **kwargs: Any) -> Any:
        losses.append(validate(*args, **kwargs))
        return losses[-1]

    pretrain.validate = noted
    pretrain.measure_flops = lambda *_: 1.0
    pretrain.save_checkpoint = lambda *_: None
    precision: Any = train.precision
    fabric = Fabric(accelerator=hardware.device_of(train), devices=1, precision=precision)
    arguments = TrainArgs(
        save_interval=None, log_interval=10, global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch_size, max_tokens=steps * train.global_batch_size * train.block_size,
        max_seq_length=train.block_size, max_norm=optimizer.grad_clip, lr_warmup_steps=warmup,
        tie_embeddings=parameters.model.tie_embeddings,
    )  # fmt: skip
    settings = {"lr": optimizer.lr, "betas": list(optimizer.betas), "weight_decay": optimizer.weight_decay}
    with contextlib.redirect_stdout(sys.stderr):
        fabric.launch()
        pretrain.main(
            fabric=fabric, devices=1, seed=train.seed, initial_checkpoint_dir=None, resume=False,
            config=build.config(parameters.model, parameters.model.vocab_size), data=Tokens(),
            out_dir=out, tokenizer_dir=None, tokenizer=None, train=arguments,
            eval=EvalArgs(interval=10**9, max_iters=len(val), initial_validation=False, final_validation=True),
            optimizer={"class_path": "torch.optim.AdamW", "init_args": settings},
        )  # fmt: skip
    return float(torch.as_tensor(losses[-1]))
