"""Section `finetune`: what the pretrained model is trained on conversations with."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.params.section import Count, Positive, Section, Seed
from pipeline.params.train import MicroBatch, Optimizer, Samples, Schedule, Train, Weight

Target = Literal["attention", "mlp", "experts", "shared_experts", "router", "head"]


class Finetune(Section):
    method: Literal["full", "lora"] = Field(
        description="full: all weights train; lora: low-rank matrices beside frozen weights (arXiv 2106.09685)"
    )
    checkpoint: str = Field(description="litgpt checkpoint folder to start from; models/litgpt is what train wrote")
    seed: Seed
    global_batch_size: Samples = Field(description="blocks of conversations in one optimizer step, over all devices")
    micro_batch_size: MicroBatch = Field(
        description="blocks in one forward pass, on one device; auto: the most that fit into its memory"
    )
    max_epochs: Annotated[float, Field(gt=0, le=1e6)] | None = Field(description="passes over the conversations")
    max_steps: Positive | None = Field(description="the first bound that is met ends the run")
    optimizer: Optimizer
    schedule: Schedule
    balance_coef: Weight = Field(description="weight of the load balancing loss; 0: routing is left alone")
    z_loss_coef: Weight = Field(description="weight of the router's z-loss")
    eval_every: Count = Field(description="steps between validations; 0: only at the end")
    rank: Annotated[int, Field(ge=1, le=65_536)] = Field(description="lora: rank of the matrices")
    alpha: Annotated[float, Field(gt=0, le=1e6)] = Field(description="lora: what is learned is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="lora: of the inputs of linear layers; experts, router and head have none, as in PEFT"
    )
    targets: Annotated[list[Target], Field(min_length=1)] = Field(
        description="lora: what it is put beside; mlp: the dense layers' MLP"
    )

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if not (self.max_epochs or self.max_steps):
            raise ValueError("max_epochs: one of max_epochs and max_steps must be set (the schedule's end)")
        return self


def training(finetune: Finetune, train: Train, block_size: int) -> Train:
    """The loop's parameters for finetuning: hardware and what is watched for as in `train`, the rest of `finetune`.

    `block_size`: the model's context, of which data/instruct has blocks. Raises ValueError where they do not fit.
    """
    shared = ("seed", "global_batch_size", "micro_batch_size", "max_epochs", "max_steps", "optimizer", "schedule")
    own = {name: getattr(finetune, name) for name in (*shared, "balance_coef", "z_loss_coef", "eval_every")}
    own |= {"initial_checkpoint": finetune.checkpoint, "block_size": block_size, "document_mask": True}
    if finetune.method == "lora" and train.strategy == "fsdp":
        raise ValueError("finetune.method: lora does not go with train.strategy: fsdp; take auto or ddp")
    micro_batch = 1 if finetune.micro_batch_size == "auto" else finetune.micro_batch_size
    at_once = micro_batch * train.devices * train.num_nodes
    if finetune.global_batch_size % at_once:
        raise ValueError(
            f"finetune.global_batch_size: {finetune.global_batch_size} is no multiple of micro_batch_size x "
            f"train.devices x train.num_nodes = {at_once}"
        )
    return train.model_copy(update=own | {"max_tokens": None, "max_minutes": None})
