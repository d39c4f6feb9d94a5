"""Settings of promotion, apart from the gate itself: reading a config imports no statistics."""

from typing import Annotated

from pydantic import Field

from lifecycle.core.config import Section


class GateConfig(Section):
    """How sure a fall must be to reject a version, and which tasks even a first version must have been measured on.

    tolerance: by task, a fall that is accepted however sure it is, in the task's own units (0.02 bits per byte, 0.01 of
    accuracy). On the same documents even a fall of a thousandth can be sure.
    """

    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    required: tuple[str, ...] = ()
    tolerance: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
