"""What the steps of a stage cost, in this process and in those that work for it.

The costs are kept where a stage says how it was computed, never in what it makes: that is the same in every run.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


def _nothing() -> defaultdict[str, float]:  # a lambda would not be sent between processes
    return defaultdict(float)


@dataclass
class StepCosts:
    """CPU-seconds by step, and the bytes of input that were given to the steps."""

    cpu_s: defaultdict[str, float] = field(default_factory=_nothing)
    num_bytes: int = 0

    def add(self, other: "StepCosts") -> None:
        """Counts what others have counted."""
        for step, seconds in other.cpu_s.items():
            self.cpu_s[step] += seconds
        self.num_bytes += other.num_bytes

    def record(self, num_bytes: int, others: Mapping[str, int] | None = None) -> dict[str, Any]:
        """For a manifest: each step's CPU-seconds and bytes of input; `others`: of steps that had other input."""
        sizes = dict.fromkeys(self.cpu_s, num_bytes) | dict(others or {})
        return {"steps": {step: {"cpu_s": round(s, 4), "bytes": sizes[step]} for step, s in self.cpu_s.items()}}


_current = [StepCosts()]


@contextmanager
def step_costs() -> Generator[StepCosts]:
    """Counts what is spent in the block, apart from what was before."""
    outer, _current[0] = _current[0], StepCosts()
    try:
        yield _current[0]
    finally:
        _current[0] = outer


@contextmanager
def spending(step: str, clock: Callable[[], float] = time.process_time) -> Generator[None]:
    """Counts the CPU time of the block as that of a step, but for what is counted for others in it: 4 us. `clock`: of
    this process alone; or `cpu_seconds`, which knows of those that work for it, to 10 ms."""
    costs = _current[0]
    started, others = clock(), sum(costs.cpu_s.values())
    try:
        yield
    finally:
        costs.cpu_s[step] += clock() - started - (sum(costs.cpu_s.values()) - others)


def add_input(num_bytes: int) -> None:
    """Counts bytes of input that the steps have worked on."""
    _current[0].num_bytes += num_bytes


def add_costs(costs: StepCosts) -> None:
    """Counts what steps have spent in another process."""
    _current[0].add(costs)
