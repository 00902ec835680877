"""What all sections of the parameters share."""

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.params import secrets

MOST = 10**15  # of anything that is counted: more is a slip of the hand, and all arithmetic stays within 64 bits
Positive = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        for name, value in self:
            texts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            for text in texts:
                if isinstance(text, str) and secrets.has_secrets(text):
                    raise ValueError(
                        f"{name}: {secrets.redacted(text)} holds a login or a key, which dvc.lock, W&B and the model "
                        f"card would publish; take it out: {secrets.instead(urlsplit(text).hostname or 'HOST')}"
                    )
        return self
