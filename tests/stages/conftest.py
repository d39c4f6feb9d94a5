"""What tests of stages share."""

from collections.abc import Iterator

import pytest

from lifecycle.core import machine


@pytest.fixture(scope="module", autouse=True)
def quick_peak() -> Iterator[None]:
    """A smaller product than the one that a training stage measures its machine by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "PEAK_SIZE", 64)
        machine.matmul_peak.cache_clear()
        yield
    machine.matmul_peak.cache_clear()
