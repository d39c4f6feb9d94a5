"""A search's outcome in words: why the pick, and why none of the others.

What must hold: every candidate but the pick has its reason, with the figures against it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from lifecycle.planning.programs.plan import ProgramPlan
from lifecycle.planning.search.candidates import Candidate
from lifecycle.planning.search.forecast import Forecast
from lifecycle.planning.topology import Topology

NO_STAGES = (
    "mesh.stage is not searched: a pipeline's bubbles and unsharded weights made the compiled step of eight layers "
    "16 % longer with 2 stages and 23 % with 4 (docs/meshes.md); to try one, plan it with mesh.stage=2"
)

RejectionKind = Literal[
    "compiled: slower",
    "compiler: no memory",
    "compiler: error",
    "slower by arithmetic",
    "memory by arithmetic",
    "cannot be cut",
]


@dataclass(frozen=True)
class RejectedCandidate:
    """A candidate, or a mesh, that was not picked, and why."""

    name: str
    kind: RejectionKind
    reason: str


@dataclass(frozen=True)
class CompiledCandidate:
    """A candidate with its forecast by arithmetic and its plan from the compiler."""

    candidate: Candidate
    forecast: Forecast
    plan: ProgramPlan


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search."""

    pick: CompiledCandidate | None  # None: nothing fits
    own: CompiledCandidate | None  # the run's own setting; None: it was not compiled
    compiled: tuple[CompiledCandidate, ...]
    rejected: tuple[RejectedCandidate, ...]  # the best of each kind first
    num_candidates: int
    notes: tuple[str, ...]  # what was not searched, and why

    def plain(self) -> dict[str, Any]:
        """The result as JSON-ready values."""
        return TypeAdapter(SearchResult).dump_python(self, mode="json")


def step_s(plan: ProgramPlan) -> float:
    """Seconds of the expected step of a program that fits."""
    assert plan.estimate is not None, "a program that fits was estimated"
    return plan.estimate.step_s


def losers(compiled: Sequence[CompiledCandidate], fitting: Sequence[CompiledCandidate]) -> Iterator[RejectedCandidate]:
    """Why each other compiled candidate is not the pick, which is the first of `fitting`."""
    for c in fitting[1:]:
        times = step_s(c.plan) / step_s(fitting[0].plan)
        yield RejectedCandidate(c.candidate.name, "compiled: slower", f"{times:.2f} times the pick's step")
    for c in sorted((c for c in compiled if not c.plan.fits), key=lambda c: c.plan.needs_bytes):
        arithmetic = f"{c.forecast.footprint.total_bytes / 1e9:,.1f} GB by arithmetic"
        reason = f"needs {c.plan.needs_bytes / 1e9:,.1f} GB; {arithmetic}"
        yield RejectedCandidate(c.candidate.name, "compiler: no memory", reason)


def slower(forecast: Forecast, best: Forecast) -> str:
    """By how much a forecast is slower than the best one, and in which terms."""
    terms = {"computing": "compute_s", "network": "network_s", "host's memory": "host_s"}
    more = {name: (getattr(forecast, field) - getattr(best, field)) * 1e3 for name, field in terms.items()}
    words = ", ".join(f"{name} {ms:+,.0f} ms" for name, ms in more.items() if abs(ms) >= 1)
    return f"{forecast.step_s / best.step_s:.2f} times the fastest's step: {words or 'equal terms'}"


def why(result: SearchResult, section: str) -> list[str]:
    """Why the pick: its memory and traffic, and term by term what it saves over the next best compiled candidate.

    `section` of the run's file has the stage's settings.
    """
    if result.pick is None:
        return _why_nothing(result, section)
    pick = result.pick
    lines = [f"{pick.candidate.name}: {step_s(pick.plan) * 1e3:,.1f} ms a step, the fastest of those compiled."]
    lines.append(f"It {_memory_and_traffic(pick.plan)}.")
    if result.own is not None:
        lines.append(_against_own(pick, result.own))
    others = [c for c in result.compiled if c is not pick and c.plan.fits]
    if others:
        lines += _against(pick, min(others, key=lambda c: step_s(c.plan)))
    refused = [r for r in result.rejected if r.kind == "compiler: no memory"]
    if refused:
        lines.append(f"{len(refused)} candidates should have fitted by arithmetic, but did not when compiled.")
    return lines


def _against_own(pick: CompiledCandidate, own: CompiledCandidate) -> str:
    if own is pick:
        return "It is the run's own setting."
    name = f"The run's own setting, {own.candidate.name}"
    if not own.plan.fits:
        return f"{name}, does not fit: it needs {own.plan.needs_bytes / 1e9:,.1f} GB."
    mine, best = step_s(own.plan), step_s(pick.plan)
    return f"{name}: {mine * 1e3:,.1f} ms, {mine / best:.2f} times the pick's step."


def _memory_and_traffic(plan: ProgramPlan) -> str:
    assert plan.estimate is not None and plan.memory is not None
    free = (plan.memory.hbm_bytes - plan.needs_bytes) / 1e9
    rows = plan.estimate.traffic
    sent = sum(row.payload_bytes for row in rows if not row.is_to_host) / 1e9
    offloaded = sum(row.payload_bytes for row in rows if row.is_to_host) / 1e9
    return (
        f"takes {plan.needs_bytes / 1e9:,.1f} GB a device and leaves {free:,.1f} GB free; a device and step, "
        f"collectives move {sent:,.1f} GB" + (f" and the link to the host {offloaded:,.1f} GB" if offloaded else "")
    )


def _against(pick: CompiledCandidate, second: CompiledCandidate) -> list[str]:
    """The pick against the second best: the terms of their steps, the largest difference first."""
    best, other = pick.plan.estimate, second.plan.estimate
    assert best is not None and other is not None
    words = {
        "compute_s": "computing",
        "kernel_s": "in kernels",
        "exposed_s": "waiting for the network",
        "host_exposed_s": "waiting for the host's memory",
        "memory_exposed_s": "waiting for copies from or to HBM",
    }
    more = {text: (getattr(other.times, name) - getattr(best.times, name)) * 1e3 for name, text in words.items()}
    terms = [
        f"{abs(ms):,.1f} ms {'less' if ms > 0 else 'more'} {text}"
        for text, ms in sorted(more.items(), key=lambda item: -abs(item[1]))
        if abs(ms) >= 0.05
    ]
    flops = (other.matmul_flops + other.kernel_flops - best.matmul_flops - best.kernel_flops) / 1e12
    spent = f"The pick spends {', '.join(terms)}" if terms else "The two spend the same"
    return [
        f"Next best, {second.candidate.name}: {step_s(second.plan) * 1e3:,.1f} ms; it "
        f"{_memory_and_traffic(second.plan)}.",
        f"{spent}; its device computes {abs(flops):,.2f} TFLOP {'less' if flops >= 0 else 'more'} a step.",
    ]


def _why_nothing(result: SearchResult, section: str) -> list[str]:
    """The candidate nearest to fitting, and what is left to change: every micro-batch was considered."""
    advice = (
        "Every mesh, grad_accum, policy and loss_chunks was considered: take more devices, a chip with more memory, or "
        f"shorter rows ({section}.seq_len)."
    )
    nearest = next((r for r in result.rejected if r.kind in ("compiler: no memory", "memory by arithmetic")), None)
    if nearest is None:
        return ["No candidate was compiled: the reasons are below.", advice]
    return [f"Nothing fits. The nearest, {nearest.name}: {nearest.reason} ({nearest.kind}).", advice]


def notes(topology: Topology) -> tuple[str, ...]:
    """The options that a search over this topology does not cover, and why."""
    if topology.chip.host_bytes_per_s is not None:
        return (NO_STAGES,)
    chip = topology.chip.name
    return NO_STAGES, f"Nothing was offloaded: the rate of the link between a {chip} and its host is not known."
