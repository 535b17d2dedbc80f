"""What every section of the settings is built from: its base class, and the types of numbers."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import pydantic
from pydantic import Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(pydantic.BaseModel):
    """A group of settings; it is frozen and refuses unknown keys."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __hash__(self) -> int:
        """The hash of the settings as JSON: some are mappings, which have no hash of their own."""
        return hash(self.model_dump_json())

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: Any) -> Any:
        """Refuses `epochs: yes`, which pydantic would read as 1."""
        kind = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("must not be yes or no")
        return value
