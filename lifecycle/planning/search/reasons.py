"""A search's outcome in words: why the pick, and why not everything else.

What must hold: every candidate that is not the pick has its reason, with the figures that were against it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from lifecycle.planning.programs.plan import Planned
from lifecycle.planning.search.candidates import Candidate
from lifecycle.planning.search.forecast import Forecast
from lifecycle.planning.topology import Topology

NO_STAGES = (
    "mesh.stage is not searched: a pipeline's idle turns and whole weights made the compiled step of eight layers "
    "16 % longer with 2 stages and 23 % with 4 (docs/meshes.md); to try one, plan it with mesh.stage=2"
)

Kind = Literal[
    "compiled: slower",
    "compiler: no memory",
    "compiler: error",
    "slower by arithmetic",
    "memory by arithmetic",
    "cannot be cut",
]


@dataclass(frozen=True)
class Rejected:
    """A candidate, or a mesh, that was not picked, and why."""

    name: str
    kind: Kind
    reason: str


@dataclass(frozen=True)
class Compiled:
    candidate: Candidate
    forecast: Forecast
    planned: Planned


@dataclass(frozen=True)
class Found:
    """A search's outcome; `pick` is `None` when nothing fits, `own` when the run's own setting was not compiled.
    `rejected` has the best of each kind first."""

    pick: Compiled | None
    own: Compiled | None
    compiled: tuple[Compiled, ...]
    rejected: tuple[Rejected, ...]
    num_candidates: int
    notes: tuple[str, ...]  # what was not looked at, and why

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return TypeAdapter(Found).dump_python(self, mode="json")


def step_s(planned: Planned) -> float:
    assert planned.estimate is not None, "a program that fits has an estimate"
    return planned.estimate.step_s


def losers(compiled: Sequence[Compiled], fitting: Sequence[Compiled]) -> Iterator[Rejected]:
    """Why each compiled one is not the pick, which is the first of `fitting`."""
    for c in fitting[1:]:
        times = step_s(c.planned) / step_s(fitting[0].planned)
        yield Rejected(c.candidate.name, "compiled: slower", f"{times:.2f} times the pick's step")
    for c in sorted((c for c in compiled if not c.planned.fits), key=lambda c: c.planned.needs_bytes):
        arithmetic = f"{c.forecast.memory.total_bytes / 1e9:,.1f} GB by arithmetic"
        reason = f"needs {c.planned.needs_bytes / 1e9:,.1f} GB; {arithmetic}"
        yield Rejected(c.candidate.name, "compiler: no memory", reason)


def slower(forecast: Forecast, best: Forecast) -> str:
    """By how much, and in which of its terms."""
    terms = {"computing": "compute_s", "network": "network_s", "host's memory": "host_s"}
    more = {name: (getattr(forecast, field) - getattr(best, field)) * 1e3 for name, field in terms.items()}
    words = ", ".join(f"{name} {ms:+,.0f} ms" for name, ms in more.items() if abs(ms) >= 1)
    return f"{forecast.step_s / best.step_s:.2f} times the fastest's step: {words or 'equal terms'}"


def why(found: Found) -> list[str]:
    """Why the pick: its memory and traffic, and term by term what it saves against the next best that was compiled."""
    if found.pick is None:
        return _why_nothing(found)
    pick = found.pick
    lines = [f"{pick.candidate.name}: {step_s(pick.planned) * 1e3:,.1f} ms a step, the fastest of those compiled."]
    lines.append(f"It {_memory_and_traffic(pick.planned)}.")
    if found.own is not None:
        lines.append(_against_own(pick, found.own))
    others = [c for c in found.compiled if c is not pick and c.planned.fits]
    if others:
        lines += _against(pick, min(others, key=lambda c: step_s(c.planned)))
    refused = [r for r in found.rejected if r.kind == "compiler: no memory"]
    if refused:
        lines.append(f"{len(refused)} that should have fitted by arithmetic did not: the compiler found no room.")
    return lines


def _against_own(pick: Compiled, own: Compiled) -> str:
    if own is pick:
        return "It is the run's own setting."
    name = f"The run's own setting, {own.candidate.name}"
    if not own.planned.fits:
        return f"{name}, does not fit: it needs {own.planned.needs_bytes / 1e9:,.1f} GB."
    mine, best = step_s(own.planned), step_s(pick.planned)
    return f"{name}: {mine * 1e3:,.1f} ms, {mine / best:.2f} times the pick's step."


def _memory_and_traffic(planned: Planned) -> str:
    assert planned.estimate is not None and planned.memory is not None
    free = (planned.memory.hbm_bytes - planned.needs_bytes) / 1e9
    rows = planned.estimate.traffic
    sent = sum(row.payload_bytes for row in rows if not row.is_to_host) / 1e9
    offloaded = sum(row.payload_bytes for row in rows if row.is_to_host) / 1e9
    return (
        f"takes {planned.needs_bytes / 1e9:,.1f} GB a device and leaves {free:,.1f} GB free; a device and step, "
        f"collectives move {sent:,.1f} GB" + (f" and the link to the host {offloaded:,.1f} GB" if offloaded else "")
    )


def _against(pick: Compiled, second: Compiled) -> list[str]:
    """The two steps' terms, the one that differs most first."""
    best, other = pick.planned.estimate, second.planned.estimate
    assert best is not None and other is not None
    words = {
        "compute_s": "computing",
        "kernel_s": "in kernels",
        "exposed_s": "waiting for the network",
        "host_exposed_s": "waiting for the host's memory",
    }
    more = {text: (getattr(other.times, name) - getattr(best.times, name)) * 1e3 for name, text in words.items()}
    terms = [
        f"{abs(ms):,.1f} ms {'less' if ms > 0 else 'more'} {text}"
        for text, ms in sorted(more.items(), key=lambda item: -abs(item[1]))
        if abs(ms) >= 0.05
    ]
    flops = (other.matmul_flops + other.kernel_flops - best.matmul_flops - best.kernel_flops) / 1e12
    spent = f"The pick spends {', '.join(terms)}" if terms else "The two spend alike"
    return [
        f"Next best, {second.candidate.name}: {step_s(second.planned) * 1e3:,.1f} ms; it "
        f"{_memory_and_traffic(second.planned)}.",
        f"{spent}; its device computes {abs(flops):,.2f} TFLOP {'less' if flops >= 0 else 'more'} a step.",
    ]


def _why_nothing(found: Found) -> list[str]:
    """What came nearest, and what is left to change: every micro-batch of the global batch was looked at."""
    mend = (
        "Every mesh, grad_accum, policy and loss_chunks was looked at: take more devices, a chip with more memory, or "
        "shorter rows (seq_len)."
    )
    nearest = next((r for r in found.rejected if r.kind in ("compiler: no memory", "memory by arithmetic")), None)
    if nearest is None:
        return ["No candidate was compiled: the reasons are below.", mend]
    return [f"Nothing fits. The nearest, {nearest.name}: {nearest.reason} ({nearest.kind}).", mend]


def notes(topology: Topology) -> tuple[str, ...]:
    if topology.chip.host_bytes_per_s is not None:
        return (NO_STAGES,)
    return (NO_STAGES, f"Nothing was offloaded: no figure for the link of a {topology.chip.name} to its host is known.")
