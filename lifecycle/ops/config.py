"""Settings of promotion, separate from the gate: reading a config imports no statistics."""

from typing import Annotated

from pydantic import Field

from lifecycle.core.config import Section


class GateConfig(Section):
    """How significant a drop must be to reject a version, and which tasks even a first version must have results for.

    tolerance: by task, a drop that is accepted however significant, in the task's own units (0.02 bits per byte, 0.01
    of accuracy). On the same documents even a drop of a thousandth can be significant.
    """

    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    required: tuple[str, ...] = ()
    tolerance: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
