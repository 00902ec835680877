"""Section `export`: the form of the model folder."""

from typing import Literal

from pydantic import Field

from pipeline.params.section import Positive, Section


class Export(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="the model's name: on its card, of GGUF files")
    dtype: Literal["float32", "bfloat16", "float16"]
    max_shard_bytes: Positive
    gguf: list[Literal["f32", "f16", "q8_0"]] = Field(description="GGUF files to write besides; [] for none")
    licence: str = Field(min_length=1, description="the model's licence (SPDX), for the card")
