"""The search for a mesh, micro-batch and rematerialisation: enumerate, prune by arithmetic, let the compiler decide.

What must hold: every candidate that is not the pick has its reason, one that cannot be compiled ends no search, and the
pick is the fastest of the compiled ones that fit, by the same estimate that a single plan shows.

The loss goes through the vocabulary once, or in the run's own `loss_chunks`; in `LOSS_CHUNKS` parts, which cost a
second product, only where the candidate does not fit otherwise.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jax.errors import JaxRuntimeError
from pydantic import TypeAdapter

from lifecycle.core.config import ConfigError
from lifecycle.core.mesh import MeshConfig
from lifecycle.model.config import ModelConfig
from lifecycle.planning.collectives import MeshShape
from lifecycle.planning.forecast import Forecast, forecast
from lifecycle.planning.layout import Candidate, memory, mesh_name, policies
from lifecycle.planning.network import Network, Span, places_of
from lifecycle.planning.plan import Planned
from lifecycle.planning.topology import Topology, mesh_over
from lifecycle.training.config import LanguageConfig

NUM_COMPILED = 4
MAX_TENSOR = 16  # beyond, products of these models are too narrow for the matrix units
MIN_CONTEXT_PART = 4096  # positions of a row that a device should still have: less is cheaper cut over tensor
SLACK = 0.95  # arithmetic below this share of the memory goes to the compiler
LOSS_CHUNKS = 16

NO_STAGES = (
    "mesh.stage is not searched: a pipeline's idle turns and its weights gathered in every turn made the compiled step "
    "36 % longer with 2 stages and 40 % with 4 (docs/meshes.md); to try one, plan it with mesh.stage=2"
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
    """A search's outcome; `pick` is `None` when nothing fits. `rejected` has the best of each kind first."""

    pick: Compiled | None
    compiled: tuple[Compiled, ...]
    rejected: tuple[Rejected, ...]
    num_candidates: int
    notes: tuple[str, ...]  # what was not looked at, and why

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return TypeAdapter(Found).dump_python(self, mode="json")


type Check = Callable[[Candidate], None]  # raises `ConfigError` for a candidate that no run could have


def meshes(topology: Topology, model: ModelConfig, seq_len: int) -> Iterator[MeshConfig]:
    """All meshes over the topology's devices, whole copies across slices, whatever they cut."""
    devices, slices = topology.num_devices, topology.num_slices
    experts = model.moe.num_experts if model.moe is not None else 1
    context = max(1, seq_len // MIN_CONTEXT_PART)
    for tensor, expert, parts in itertools.product(
        _divisors(devices, MAX_TENSOR), _divisors(devices, experts), _divisors(devices, context)
    ):
        for copies in _divisors(devices // slices, devices):
            used = tensor * expert * parts * copies * slices
            if devices % used == 0:
                yield MeshConfig(
                    replica=slices * copies, fsdp=devices // used, expert=expert, context=parts, tensor=tensor
                )


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]


def candidates(
    mesh: MeshConfig, topology: Topology, model: ModelConfig, train: LanguageConfig, check: Check
) -> list[Candidate]:
    """Every micro-batch, policy and loss that a run could have on this mesh.

    Raises `ConfigError`, the reason for the whole batch at once, when there is none.
    """
    kept = policies(model, mesh, train.remat)
    if topology.chip.host_bytes_per_s is None:
        kept = {name: remat for name, remat in kept.items() if "offload" not in remat.values()}
    found: list[Candidate] = []
    reasons: list[ConfigError] = []
    for accum, chunks in itertools.product(
        _divisors(train.global_batch_size, train.global_batch_size), sorted({1, train.loss_chunks, LOSS_CHUNKS})
    ):
        ways = [Candidate(mesh, accum, policy, remat, chunks) for policy, remat in kept.items()]
        try:
            check(ways[0])
        except ConfigError as error:
            reasons.append(error)
        else:
            found += ways
    if not found:
        raise reasons[0]
    return found


def search(
    topology: Topology,
    model: ModelConfig,
    train: LanguageConfig,
    check: Check,
    compile_one: Callable[[Candidate], Planned],
    on_compiled: Callable[[Compiled], None],
    most: int = NUM_COMPILED,
) -> Found:
    """Compiles the `most` best candidates by arithmetic; `on_compiled` hears of each as soon as it is known.

    A candidate that the compiler refuses does not use up one of the `most`, up to twice that many tries.
    """
    ranked, refused, number = _ranked(topology, model, train, check)
    compiled: list[Compiled] = []
    failed: list[Rejected] = []
    tried = 0
    for tried, (candidate, expected) in enumerate(ranked):
        if sum(c.planned.fits for c in compiled) >= most or tried >= 2 * most:
            break
        try:
            compiled.append(Compiled(candidate, expected, compile_one(candidate)))
        except (JaxRuntimeError, ValueError) as error:  # the compiler's, and what tracing refuses
            failed.append(Rejected(candidate.name, "compiler: error", _first_line(error)))
            continue
        on_compiled(compiled[-1])
    else:
        tried = len(ranked)
    fitting = sorted((c for c in compiled if c.planned.fits), key=lambda c: _step_s(c.planned))
    pick = fitting[0] if fitting else None
    slower = [Rejected(c.name, "slower by arithmetic", _slower(f, ranked[0][1])) for c, f in ranked[tried:]]
    rejected = (*_losers(compiled, fitting), *failed, *slower, *refused)
    return Found(pick, tuple(compiled), rejected, number, _notes(topology))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _notes(topology: Topology) -> tuple[str, ...]:
    if topology.chip.host_bytes_per_s is not None:
        return (NO_STAGES,)
    return (NO_STAGES, f"Nothing was offloaded: no figure for the link of a {topology.chip.name} to its host is known.")


def _ranked(
    topology: Topology, model: ModelConfig, train: LanguageConfig, check: Check
) -> tuple[list[tuple[Candidate, Forecast]], list[Rejected], int]:
    """Candidates that should fit, the fastest first; those that should not, the smallest first, and meshes that cannot
    be; how many there were."""
    fitting: list[tuple[Candidate, Forecast]] = []
    too_large: list[tuple[float, Candidate]] = []
    uncut: list[Rejected] = []
    limit = SLACK * topology.chip.hbm_bytes
    for mesh in meshes(topology, model, train.seq_len):
        try:
            found = candidates(mesh, topology, model, train, check)
        except ConfigError as error:
            uncut.append(Rejected(mesh_name(mesh), "cannot be cut", str(error)))
            continue
        sized = _proposed([(memory(model, train, c).total_bytes, c) for c in found], limit, train.loss_chunks)
        small = [candidate for size, candidate in sized if size <= limit]
        too_large += [(size, candidate) for size, candidate in sized if size > limit]
        if small:  # only now: laying a mesh over a large topology takes longer than the arithmetic
            network = _network(topology, mesh)
            fitting += [(candidate, forecast(model, train, candidate, topology, network)) for candidate in small]
    has = topology.chip.hbm_bytes / 1e9
    refused = [
        Rejected(candidate.name, "memory by arithmetic", f"{size / 1e9:,.1f} GB of the device's {has:,.1f} GB")
        for size, candidate in sorted(too_large, key=lambda pair: pair[0])
    ]
    number = len(fitting) + len(too_large) + len(uncut)
    return sorted(fitting, key=lambda pair: pair[1].step_s), [*refused, *uncut], number


def _proposed(sized: list[tuple[float, Candidate]], limit: float, own_chunks: int) -> list[tuple[float, Candidate]]:
    """Without those that go through the vocabulary in more parts than the run and need not: whole it fits."""
    whole = {(c.grad_accum, c.policy) for size, c in sized if c.loss_chunks == 1 and size <= limit}
    usual = {1, own_chunks}
    return [(size, c) for size, c in sized if c.loss_chunks in usual or (c.grad_accum, c.policy) not in whole]


class _Network(Network):
    """A mesh's network that remembers what a group of axes spans: hundreds of candidates ask for the same few."""

    def __init__(self, topology: Topology, mesh: MeshShape, places: Any) -> None:
        super().__init__(topology, mesh, places)
        self._spans: dict[tuple[str, ...], Span] = {}

    def span(self, axes: tuple[str, ...]) -> Span:
        if axes not in self._spans:
            self._spans[axes] = super().span(axes)
        return self._spans[axes]


def _network(topology: Topology, mesh: MeshConfig) -> Network:
    laid = mesh_over(topology, mesh)
    shape = MeshShape(tuple(laid.axis_names), laid.devices.shape, topology.num_slices)
    return _Network(topology, shape, places_of(laid.devices))


def _step_s(planned: Planned) -> float:
    assert planned.estimate is not None, "a program that fits has an estimate"
    return planned.estimate.step_s


def _losers(compiled: Sequence[Compiled], fitting: Sequence[Compiled]) -> Iterator[Rejected]:
    """Why each compiled one is not the pick, which is the first of `fitting`."""
    for c in fitting[1:]:
        times = _step_s(c.planned) / _step_s(fitting[0].planned)
        yield Rejected(c.candidate.name, "compiled: slower", f"{times:.2f} times the pick's step")
    for c in sorted((c for c in compiled if not c.planned.fits), key=lambda c: c.planned.needs_bytes):
        arithmetic = f"{c.forecast.memory.total_bytes / 1e9:,.1f} GB by arithmetic"
        reason = f"needs {c.planned.needs_bytes / 1e9:,.1f} GB; {arithmetic}"
        yield Rejected(c.candidate.name, "compiler: no memory", reason)


def _slower(forecast: Forecast, best: Forecast) -> str:
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
    lines = [f"{pick.candidate.name}: {_step_s(pick.planned) * 1e3:,.1f} ms a step, the fastest of those compiled."]
    lines.append(f"It {_memory_and_traffic(pick.planned)}.")
    others = [c for c in found.compiled if c is not pick and c.planned.fits]
    if others:
        lines += _against(pick, min(others, key=lambda c: _step_s(c.planned)))
    refused = [r for r in found.rejected if r.kind == "compiler: no memory"]
    if refused:
        lines.append(f"{len(refused)} that should have fitted by arithmetic did not: the compiler found no room.")
    return lines


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
        f"Next best, {second.candidate.name}: {_step_s(second.planned) * 1e3:,.1f} ms; it "
        f"{_memory_and_traffic(second.planned)}.",
        f"{spent}; its device computes {abs(flops):,.2f} TFLOP {'less' if flops >= 0 else 'more'} a step.",
    ]


def _why_nothing(found: Found) -> list[str]:
    """What came nearest, and what is left to change: every micro-batch of the global batch was looked at."""
    mend = (
        "Every mesh, grad_accum, policy and loss_chunks was looked at: take more devices, a chip with more memory, or "
        "shorter rows (pretrain.seq_len)."
    )
    nearest = next((r for r in found.rejected if r.kind in ("compiler: no memory", "memory by arithmetic")), None)
    if nearest is None:
        return ["No candidate was compiled: the reasons are below.", mend]
    return [f"Nothing fits. The nearest, {nearest.name}: {nearest.reason} ({nearest.kind}).", mend]
