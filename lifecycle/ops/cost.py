"""What a request costs: core-seconds times a price, a batch's share by tokens.

Requests that decode together use the machine together, so that no request's time can be measured by itself. A step's
core-seconds are divided among the requests in it in proportion to the tokens that each had in the step (a prompt's
tokens in prefill, one in decode). What must hold: the shares add up to what was spent, so that the log's sum is the
machine's.
"""

import math
import threading
from collections import deque
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from lifecycle.core.config import Section

REMEMBERED = 64  # requests that ended last; more cannot have a step under way


class PriceConfig(Section):
    """The price table. The default is the usual list price of one cloud vCPU core, on demand."""

    currency: str = "USD"
    core_hour: Annotated[float, Field(ge=0)] = 0.05

    def money(self, core_s: float) -> float:
        """The price of this many core-seconds, in `currency`."""
        return core_s / 3600 * self.core_hour


def allocate(core_s: float, tokens: Mapping[str, int]) -> dict[str, float]:
    """Divides a step's core-seconds among its requests in proportion to their tokens in the step."""
    total = sum(tokens.values())
    assert total > 0, "a step without tokens has nobody to pay for it"
    return {request: core_s * count / total for request, count in tokens.items()}


class CostMeter:
    """Adds up each running request's share; one thread may step while others finish requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: dict[str, list[float]] = {}
        self._ended: deque[str] = deque(maxlen=REMEMBERED)

    def step(self, core_s: float, tokens: Mapping[str, int]) -> None:
        """Charges one step: `tokens` has, by request, how many of its tokens went through the model."""
        with self._lock:
            for request, share in allocate(core_s, tokens).items():
                if request in self._ended:  # cancelled while its step ran: that step stays unpaid
                    continue
                self._shares.setdefault(request, []).append(share)

    def finish(self, request: str) -> float:
        """The core-seconds of a request that has ended, which is then forgotten; 0 if it never ran."""
        with self._lock:
            self._ended.append(request)
            return math.fsum(self._shares.pop(request, ()))
