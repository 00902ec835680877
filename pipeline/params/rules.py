"""All sections together, and the rules that hold between them."""

from typing import Self

from pydantic import model_validator

from pipeline.huggingface.classes import gguf_architecture
from pipeline.params import watch
from pipeline.params.clean import Clean
from pipeline.params.download import Download
from pipeline.params.evaluate import Evaluate
from pipeline.params.export import Export
from pipeline.params.finetune import Finetune
from pipeline.params.instruct import Instruct
from pipeline.params.model import Model
from pipeline.params.section import Section
from pipeline.params.tokenizer import Tokenizer
from pipeline.params.train import Train


class Params(Section):
    download: Download
    clean: Clean
    tokenizer: Tokenizer
    model: Model
    train: Train
    evaluate: Evaluate
    export: Export
    instruct: Instruct
    finetune: Finetune

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        watch.check(self)
        if self.model.vocab_size is not None and (self.tokenizer.vocab_size or 0) > self.model.vocab_size:
            raise ValueError(
                f"model.vocab_size: {self.model.vocab_size} is less than tokenizer.vocab_size = "
                f"{self.tokenizer.vocab_size}; set it to at least that, or to null"
            )
        if self.train.block_size > self.model.block_size:
            raise ValueError(
                f"train.block_size: {self.train.block_size} is more than the model's context; "
                f"allowed: 1 to model.block_size = {self.model.block_size}"
            )
        if self.export.gguf:
            gguf_architecture(self.model)  # raises where llama.cpp has none
            if self.tokenizer.kind not in ("train", "pretrained"):
                raise ValueError(
                    f"export.gguf: llama.cpp has no tokenizer of kind {self.tokenizer.kind}; take [] or kind: train"
                )
        if self.evaluate.stride is not None and self.evaluate.stride > self.train.block_size:
            raise ValueError(
                f"evaluate.stride: {self.evaluate.stride}; allowed: 1 to train.block_size = {self.train.block_size}"
            )
        return self
