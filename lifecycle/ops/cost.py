"""The cost of a request: device-seconds times a price; a batch is divided by tokens.

Requests that decode together use the device together, so one request's time cannot be measured on its own. A dispatch
occupies an engine's devices for its wall time; these device-seconds are divided among the dispatch's requests in
proportion to their tokens in it (a prompt's tokens in prefill, one per step in decode). What must hold: the shares add
up to the time of the engine's dispatches. Engines that share a device also pay for the time that they wait for it.
"""

import math
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from lifecycle.core.config import Section

REMEMBERED = 1024  # newest ended requests; no more than these can have a dispatch under way


class PriceConfig(Section):
    """The price table. The default is the usual list price of one cloud vCPU core, on demand."""

    currency: str = "USD"
    core_hour: Annotated[float, Field(ge=0)] = 0.05  # price of one CPU core; stages are priced with it
    # Price of one serving device: an accelerator, or a CPU with all its cores. None: a CPU's cores at `core_hour`; an
    # accelerator has no default price, and its requests are logged with a cost of 0.
    device_hour: Annotated[float, Field(ge=0)] | None = None

    def money(self, core_s: float) -> float:
        """The price of this many core-seconds, in `currency`."""
        return core_s / 3600 * self.core_hour

    def of_device(self, platform: str, num_cores: int) -> "DevicePrice":
        """The price of serving on a device of this platform; `num_cores` matters for "cpu" only."""
        default = num_cores * self.core_hour if platform == "cpu" else 0.0
        return DevicePrice(self.currency, default if self.device_hour is None else self.device_hour)


@dataclass(frozen=True)
class DevicePrice:
    """The price of one device for an hour."""

    currency: str = "USD"
    hour: float = 0.0

    def money(self, device_s: float) -> float:
        """The price of this many device-seconds, in `currency`."""
        return device_s / 3600 * self.hour


def allocate(device_s: float, tokens: Mapping[str, int]) -> dict[str, float]:
    """Divides a dispatch's device-seconds among its requests in proportion to their tokens in it."""
    total = sum(tokens.values())
    assert total > 0, "a dispatch has tokens to share its cost"
    return {request: device_s * count / total for request, count in tokens.items()}


class CostMeter:
    """Accumulates each running request's share, over any number of engines; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shares: dict[str, list[float]] = {}
        self._ended: deque[str] = deque(maxlen=REMEMBERED)

    def charge(self, device_s: float, tokens: Mapping[str, int]) -> None:
        """Charges one dispatch; `tokens`: each request's number of tokens in it."""
        with self._lock:
            for request, share in allocate(device_s, tokens).items():
                if request in self._ended:  # cancelled during its dispatch: its share stays unpaid
                    continue
                self._shares.setdefault(request, []).append(share)

    def finish(self, request: str) -> float:
        """The device-seconds of a finished request, which is then forgotten; 0 if it never ran."""
        with self._lock:
            self._ended.append(request)
            return math.fsum(self._shares.pop(request, ()))
