"""Section `instruct`: where conversations come from; the sources are those of `download`."""

from typing import Annotated, ClassVar, Literal, Union

from pydantic import Field

from pipeline.params.download import Bounded, HubFiles, LocalFiles, UrlFiles, WandbFiles
from pipeline.params.section import Fraction, Positive


class _Instruct(Bounded):
    val_fraction: Fraction = Field(description="share of conversations held out, by a hash of each")
    bad_records: Literal["error", "drop"] = Field(
        description="what to do with records that are no conversation: stop and name them, or drop and count them"
    )
    text_column: ClassVar[None] = None  # records are read whole
    split: ClassVar[str] = "whole"
    separator: ClassVar[str] = ""


class InstructBundled(_Instruct):
    source: Literal["bundled"]
    conversations: Positive = Field(description="instructions and dialogues to make up")


class InstructLocal(_Instruct, LocalFiles):
    source: Literal["local"]


class InstructHub(_Instruct, HubFiles):
    source: Literal["huggingface"]


class InstructUrl(_Instruct, UrlFiles):
    source: Literal["url"]


class InstructWandb(_Instruct, WandbFiles):
    source: Literal["wandb"]


Instruct = Annotated[
    Union[InstructBundled, InstructLocal, InstructHub, InstructUrl, InstructWandb], Field(discriminator="source")
]
