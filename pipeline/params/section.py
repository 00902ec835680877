"""What all sections of the parameters share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST = 10**15  # of anything that is counted: more is a slip of the hand, and all arithmetic stays within 64 bits
Positive = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, protected_namespaces=())
