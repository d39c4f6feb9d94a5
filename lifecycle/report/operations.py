"""The operations of an XProf trace and their times, read from its `xplane.pb` files by JAX itself.

An accelerator has a plane of its own, with a line of operations; a GPU's streams are lines too. A CPU's operations are
in the host's plane, among Python's calls: those with an `hlo_op` are the program's. Times are an operation's own,
without those of operations inside it (a loop's body, a fusion's parts), so that they add up.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICE_PLANE = "/device:"
OPERATIONS = "XLA Ops"  # the line of a TPU's plane that has its operations; its other lines have the same time again


@dataclass(frozen=True)
class Operation:
    """An operation by its name in the compiled program: its own seconds in the trace, and how often it ran."""

    name: str
    seconds: float
    count: int


def trace_files(folder: Path) -> list[Path]:
    """The newest trace's files below a folder, one for each traced process. Raises `ValueError` if there is none."""
    files = sorted(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise ValueError(
            f"{folder}: no trace here; make one by running with profile=FIRST-LAST, for example profile=10-12"
        )
    return [path for path in files if path.parent == files[-1].parent]


def operations(files: Iterable[Path]) -> list[Operation]:
    """The operations of a trace, those that took longest first."""
    from jax.profiler import ProfileData

    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for file in files:
        for line in _lines(ProfileData.from_file(str(file))):
            for name, own_ns in _own_times(line):
                seconds[name] += own_ns / 1e9
                counts[name] += 1
    found = [Operation(name, s, counts[name]) for name, s in seconds.items()]
    return sorted(found, key=lambda operation: (-operation.seconds, operation.name))


def _lines(trace: Any) -> Iterator[list[Any]]:
    """The lines of operations of all devices, else of the host."""
    planes = list(trace.planes)
    devices = [plane for plane in planes if plane.name.startswith(DEVICE_PLANE)]
    for plane in devices:
        lines = list(plane.lines)
        operation_lines = [line for line in lines if line.name == OPERATIONS]
        for line in operation_lines or [line for line in lines if line.name.startswith("Stream")]:
            yield list(line.events)
    if not devices:
        for plane in planes:
            yield from ([event for event in line.events if _is_operation(event)] for line in plane.lines)


def _is_operation(event: Any) -> bool:
    return any(name == "hlo_op" for name, _ in event.stats)


def _own_times(events: list[Any]) -> Iterator[tuple[str, float]]:
    """(name, nanoseconds without those of the events inside it) of each event of a line, whose events nest."""
    open_events: list[list[Any]] = []  # [end, name, own time]
    for event in sorted(events, key=lambda e: (e.start_ns, -e.duration_ns)):
        while open_events and open_events[-1][0] <= event.start_ns:
            _, name, own = open_events.pop()
            yield name, own
        if open_events:
            open_events[-1][2] -= event.duration_ns
        open_events.append([event.start_ns + event.duration_ns, event.name, event.duration_ns])
    yield from ((name, own) for _, name, own in open_events)
