"""Section `tokenizer`: which tokenizer, and how its token set is cut."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.params.section import Positive, Section


class Tokenizer(Section):
    watch: str = Field(description="file or folder whose content DVC watches for this stage (see dvc.yaml)")
    kind: Literal["train", "pretrained", "bytes", "characters"]
    vocab_size: Positive | None = Field(description="tokens to train, special ones included; null unless kind: train")
    path: Annotated[str | None, Field(coerce_numbers_to_str=True)] = Field(
        description="kind pretrained: folder, tokenizer.json, SentencePiece model or Hub id"
    )
    revision: Annotated[str | None, Field(coerce_numbers_to_str=True)] = Field(
        description="kind pretrained with a Hub id: its commit, tag or branch"
    )
    eos_token: str = Field(min_length=1, description="special token written after every document")
    pad_token: str | None = Field(
        min_length=1, description="special token that fills batches up in other programs; null: none"
    )
    special_tokens: list[str] = Field(description="further tokens that text never produces by itself")
    split_digits: bool = Field(description="one token a digit")
    min_frequency: Positive = Field(description="pairs seen less often are not merged")
    train_bytes: Positive | None = Field(description="bytes of text the tokenizer is trained on; null: all")
    chunk_tokens: Annotated[int, Field(ge=1, le=2**30 - 3)] = Field(
        description="tokens in a litdata chunk, whose offsets are 32-bit byte counts"
    )

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if self.kind == "train" and self.vocab_size is None:
            raise ValueError("vocab_size: needed for kind: train")
        if self.kind == "train" and self.vocab_size is not None:
            least = 256 + 1 + len(self.special_tokens)
            if self.vocab_size < least:
                raise ValueError(
                    f"vocab_size: {self.vocab_size} is too small; 256 bytes and the special tokens need {least}"
                )
        if self.kind != "train" and self.vocab_size is not None:
            raise ValueError(f"vocab_size: {self.vocab_size}; kind: {self.kind} has its own, so allowed: null")
        if self.kind == "pretrained" and not self.path:
            raise ValueError("path: name the pretrained tokenizer (folder, tokenizer.json, *.model or Hub id)")
        if self.kind != "pretrained" and (self.path or self.revision):
            raise ValueError(f"path: {self.path!r} at {self.revision!r} means nothing with kind: {self.kind}; set null")
        special = [self.eos_token, *self.special_tokens]
        if len(set(special)) < len(special) or "" in special:
            raise ValueError(f"special_tokens: {self.special_tokens}; allowed: not empty, each once, not the eos_token")
        if self.pad_token == self.eos_token:
            raise ValueError(
                f"pad_token: {self.pad_token!r} is the eos_token; programs that train leave the pad token out of the "
                "loss, so a model would not learn to end: name another, or null"
            )
        return self
