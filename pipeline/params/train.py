"""Section `train`: hardware, batches, optimizer, schedule, and what is watched for."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from pipeline.params.section import MOST, Count, Fraction, Positive, Section, Seed
from pipeline.train.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]

Rate = Annotated[float, Field(gt=0, le=10)]  # of learning: more is a slip of the hand
Samples = Annotated[int, Field(ge=1, le=2**24)]
MicroBatch = Annotated[
    Annotated[Samples, Tag("number")] | Annotated[Literal["auto"], Tag("word")],
    Discriminator(
        lambda value: "word" if isinstance(value, str) else "number"
    ),  # one of them is complained of, not both
]
Weight = Annotated[float, Field(ge=0, le=1000)]  # of a loss, or of decay


def _as_written(value: Any) -> Any:
    """YAML takes `on` and `off` without quotes for true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = BeforeValidator(_as_written)


class Optimizer(Section):
    name: OptimizerName = Field(description="muon: Muon for matrices, AdamW for the rest")
    lr: Rate = Field(description="peak learning rate (of AdamW's share, with muon)")
    muon_lr: Rate = Field(description="peak learning rate of Muon's share")
    betas: tuple[Fraction, Fraction]
    eps: Annotated[float, Field(gt=0, le=1)]
    weight_decay: Weight = Field(description="on matrices; norms and biases have none")
    grad_clip: Annotated[float, Field(ge=0, le=1e9)] = Field(description="largest gradient norm; 0: no clipping")


class Schedule(Section):
    name: Literal["cosine", "linear", "wsd", "constant"] = Field(description="wsd: warm up, stay, then decay")
    warmup: Annotated[float, Field(ge=0, le=MOST)] = Field(
        description="steps if 1 or more, a share of the run if below 1"
    )
    decay: Fraction = Field(description="wsd: share of the run that decays")
    min_lr: Annotated[float, Field(ge=0, le=10)] = Field(description="the floor, as an absolute learning rate")
    min_lr_fraction: Fraction = Field(description="the floor, as a share of the peak; the higher of the two holds")


class RoutingGate(Section):
    """Routing that must hold once `grace` has passed, or the stage warns or fails."""

    action: Annotated[Literal["off", "warn", "fail"], Switch]
    grace: Fraction = Field(description="share of the run before the first check")
    max_dead_experts: Count = Field(description="experts without a token, in any one layer")
    max_violation: Annotated[float, Field(gt=0, le=1e6)] = Field(
        description="(largest load / mean load) - 1, per layer"
    )
    min_load_entropy: Fraction = Field(description="entropy of the load / log(n_expert), per layer")


class Train(Section):
    seed: Seed
    device: Literal["auto", "cpu", "cuda", "mps"]
    devices: Annotated[int, Field(ge=1, le=1024)] = Field(description="processes (GPUs, or CPU processes) on each node")
    num_nodes: Annotated[int, Field(ge=1, le=65_536)]
    strategy: Literal["auto", "ddp", "fsdp"]
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed"] = Field(
        description="auto: mixed on a GPU; on a CPU 32-true, with matmuls in bfloat16 where those are faster"
    )
    compile: Annotated[Literal["auto", "on", "off"], Switch] = Field(
        description="auto: only where compiling pays back within the run"
    )
    initial_checkpoint: str | None = Field(description="litgpt checkpoint folder whose weights to begin with")
    block_size: Annotated[int, Field(ge=1, le=2**24)] = Field(description="tokens in a training sample")
    document_mask: bool = Field(description="attention stays within a document; positions restart")
    global_batch_size: Samples = Field(description="samples in one optimizer step, over all devices")
    micro_batch_size: MicroBatch = Field(
        description="samples in one forward pass, on one device; auto: the most that fit into its memory"
    )
    max_tokens: Positive | None = Field(description="stop after this many; the first bound that is met ends the run")
    max_steps: Positive | None
    max_epochs: Annotated[float, Field(gt=0, le=1e6)] | None
    max_minutes: Annotated[float, Field(gt=0, le=1e7)] | None = Field(
        description="wall time of one session of training; the run needs another bound, and goes on to it in the next"
    )
    optimizer: Optimizer
    schedule: Schedule
    activation_checkpointing: bool
    loss_chunk: Count = Field(description="tokens whose logits are held at a time; 0: all")
    balance_coef: Weight = Field(description="weight of the load balancing loss")
    z_loss_coef: Weight = Field(description="weight of the router's z-loss")
    bias_update_rate: Weight = Field(description="router: sigmoid, step of its balancing bias")
    routing_gate: RoutingGate
    eval_every: Count = Field(description="steps between validations; 0: only at the end")
    eval_samples: Positive = Field(description="val samples in a validation")
    log_every: Positive = Field(description="steps between lines of metrics")
    checkpoint_every: Positive = Field(description="steps between checkpoints to resume from")
    keep_checkpoints: Positive
    num_workers: Annotated[int, Field(ge=0, le=1024)] = Field(description="processes that read tokens")
    max_non_finite_steps: Count = Field(description="steps in a row whose gradient may be not finite")

    @property
    def micro_batch(self) -> int:
        """micro_batch_size, where it is a number: training settles `auto` before anything is computed."""
        assert self.micro_batch_size != "auto"
        return self.micro_batch_size

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        at_once = (1 if self.micro_batch_size == "auto" else self.micro_batch) * self.devices * self.num_nodes
        if self.global_batch_size % at_once:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is no multiple of micro_batch_size x devices x "
                f"num_nodes = {at_once}; nearest: {max(at_once, round(self.global_batch_size / at_once) * at_once)}"
            )
        if not (self.max_tokens or self.max_steps or self.max_epochs):
            raise ValueError("max_tokens: one of max_tokens, max_steps and max_epochs must be set (the schedule's end)")
        if self.device == "cpu" and self.precision == "16-mixed":
            raise ValueError("precision: 16-mixed needs a GPU; on device: cpu take 32-true")
        if self.device == "mps" and self.precision not in ("auto", "32-true"):
            raise ValueError(f"precision: {self.precision} is not supported on device: mps; take 32-true")
        if refusal := OPTIMIZERS[self.optimizer.name].refusal(self.optimizer.name, self.device, self.strategy):
            raise ValueError(refusal)
        if self.strategy == "fsdp" and self.device == "mps":
            raise ValueError("strategy: fsdp needs more than one device, and mps is one; take auto")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError("strategy: fsdp does not go with precision: 16-mixed; take bf16-mixed, or ddp")
        return self
