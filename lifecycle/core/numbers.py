"""Numbers in settings, as devices compute with them: in float32 and int32.

A value that is valid in Python, and none in float32, would be accepted and break at the first step, or never work: a
rate of 1e-50 is 0 there, a decay of 0.99999999 is 1, whose bias correction divides by 0.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

LARGEST_FLOAT32, SMALLEST_FLOAT32 = (2 - 2**-23) * 2.0**127, 2.0**-126  # of the normal ones: devices take others for 0
LARGEST_INT32 = 2**31 - 1
BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1


def _in_float32(value: float) -> float:
    if value and not SMALLEST_FLOAT32 <= abs(value) <= LARGEST_FLOAT32:
        raise ValueError(
            f"devices compute with it in float32, where it is {'infinite' if abs(value) > 1 else 0}; choose a value "
            f"from {SMALLEST_FLOAT32:.2g} to {LARGEST_FLOAT32:.2g}"
        )
    return value


Float32 = Annotated[float, AfterValidator(_in_float32)]
Decay = Annotated[float, Field(ge=0, le=BELOW_ONE)]  # of a running mean; 0: none
Size = Annotated[int, Field(gt=0, le=LARGEST_INT32)]  # of a dimension, or a position in it
