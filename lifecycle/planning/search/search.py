"""The search for a mesh, micro-batch and rematerialisation: enumerate, prune by arithmetic, let the compiler decide.

What must hold: every candidate that is not the pick has its reason, one that cannot be compiled does not end the
search, and the pick is the fastest of the compiled ones that fit, by the same estimate that a single plan shows.

Arithmetic cannot tell similar candidates apart, so half of the compiled ones are its best, and the others are the best
of other kinds.
"""

from collections.abc import Callable

from jax.errors import JaxRuntimeError

from lifecycle.core.config import ConfigError
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.estimate.network import network_of
from lifecycle.planning.programs.plan import ProgramPlan
from lifecycle.planning.search.candidates import Candidate, Check, candidates, is_dominated, mesh_name, meshes
from lifecycle.planning.search.footprint import footprint
from lifecycle.planning.search.forecast import Forecast, forecast
from lifecycle.planning.search.reasons import (
    CompiledCandidate,
    RejectedCandidate,
    SearchResult,
    losers,
    notes,
    slower,
    step_s,
)
from lifecycle.planning.topology import Topology, mesh_over
from lifecycle.training.config import TrainConfig

NUM_COMPILED = 4
SLACK = 0.95  # candidates that by arithmetic need at most this share of the memory may be compiled
ERROR = 1 / 7  # relative error of a step by arithmetic (`forecast.py`)

type Ranked = list[tuple[Candidate, Forecast]]


def search(
    topology: Topology,
    model: ModelConfig,
    mesh: MeshConfig,
    train: TrainConfig,
    check: Check,
    compile_one: Callable[[Candidate], ProgramPlan],
    on_compiled: Callable[[CompiledCandidate], None],
    most: int = NUM_COMPILED,
) -> SearchResult:
    """Compiles `most` candidates, chosen by arithmetic, and the run's own setting (`mesh` and `train`).

    The own setting is compiled only if it should fit by arithmetic. A candidate that does not fit or fails to compile
    does not count towards `most`, but there are no more than 2 x `most` attempts. `on_compiled` gets each compiled
    candidate as soon as it is known.
    """
    ranked, refused, number = _ranked(topology, model, train, check)
    left = in_turn(ranked, most)
    compiled: list[CompiledCandidate] = []
    failed: list[RejectedCandidate] = []

    def attempt(candidate: Candidate, expected: Forecast) -> None:
        try:
            compiled.append(CompiledCandidate(candidate, expected, compile_one(candidate)))
        except (JaxRuntimeError, ValueError) as error:  # from the compiler or from tracing
            failed.append(RejectedCandidate(candidate.name, "compiler: error", _first_line(error)))
        else:
            on_compiled(compiled[-1])

    def is_own(candidate: Candidate) -> bool:
        settings = (mesh, train.grad_accum, train.remat, train.loss_chunks)
        return settings == (candidate.mesh, candidate.grad_accum, candidate.remat, candidate.loss_chunks)

    while left and sum(c.plan.fits for c in compiled) < most and len(compiled) + len(failed) < 2 * most:
        attempt(*left.pop(0))
    if (own_pair := next((pair for pair in left if is_own(pair[0])), None)) is not None:
        left.remove(own_pair)
        attempt(*own_pair)
    own = next((c for c in compiled if is_own(c.candidate)), None)
    fitting = sorted((c for c in compiled if c.plan.fits), key=lambda c: step_s(c.plan))
    left.sort(key=lambda pair: pair[1].step_s)
    slow = [RejectedCandidate(c.name, "slower by arithmetic", slower(f, ranked[0][1])) for c, f in left]
    rejected = (*losers(compiled, fitting), *failed, *slow, *refused)
    return SearchResult(fitting[0] if fitting else None, own, tuple(compiled), rejected, number, notes(topology))


def in_turn(ranked: Ranked, most: int) -> Ranked:
    """All candidates in the order in which they are compiled.

    Half of `most` are the best. Then come the best of each other kind (its policy and its sizes of `tensor`, `context`
    and `expert`) whose step arithmetic cannot tell from the best, then the rest. A kind whose best candidate is
    dominated by another candidate belongs to the rest.
    """
    first: Ranked = []
    kinds: set[_Kind] = set()
    dominated: set[_Kind] = set()
    for rank, (candidate, expected) in enumerate(ranked):
        if len(first) == most or expected.step_s > (1 + ERROR) * ranked[0][1].step_s:
            break
        kind = _kind(candidate)
        if kind in dominated or (kind in kinds and len(first) >= most - most // 2):
            continue
        if kind not in kinds and any(is_dominated(candidate, other) for other, _ in ranked[:rank]):
            dominated.add(kind)
        else:
            kinds.add(kind)
            first.append((candidate, expected))
    chosen = {candidate.name for candidate, _ in first}
    return [*first, *(pair for pair in ranked if pair[0].name not in chosen)]


type _Kind = tuple[str, int, int, int]


def _kind(candidate: Candidate) -> _Kind:
    mesh = candidate.mesh
    return candidate.policy, mesh.tensor, mesh.context, mesh.expert


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _ranked(
    topology: Topology, model: ModelConfig, train: TrainConfig, check: Check
) -> tuple[Ranked, list[RejectedCandidate], int]:
    """Candidates that should fit by arithmetic, the fastest first; the refused ones; how many there were in all.

    Refused are candidates that should not fit, the smallest first, and impossible meshes.
    """
    fitting: Ranked = []
    too_large: list[tuple[float, Candidate]] = []
    uncut: list[RejectedCandidate] = []
    limit = SLACK * topology.chip.hbm_bytes
    for mesh in meshes(topology, model, train.seq_len):
        try:
            possible = candidates(mesh, topology, model, train, check)
        except ConfigError as error:
            uncut.append(RejectedCandidate(mesh_name(mesh), "cannot be cut", str(error)))
            continue
        sized = _proposed(
            [(footprint(model, train, c, topology.chip).total_bytes, c) for c in possible], limit, train.loss_chunks
        )
        small = [candidate for size, candidate in sized if size <= limit]
        too_large += [(size, candidate) for size, candidate in sized if size > limit]
        if small:  # not earlier: building a mesh over a large topology takes longer than the arithmetic
            network = network_of(topology, mesh_over(topology, mesh))
            fitting += [(candidate, forecast(model, train, candidate, topology, network)) for candidate in small]
    has = topology.chip.hbm_bytes / 1e9
    refused = [
        RejectedCandidate(candidate.name, "memory by arithmetic", f"{size / 1e9:,.1f} GB of the device's {has:,.1f} GB")
        for size, candidate in sorted(too_large, key=lambda pair: pair[0])
    ]
    number = len(fitting) + len(too_large) + len(uncut)
    return sorted(fitting, key=lambda pair: pair[1].step_s), [*refused, *uncut], number


def _proposed(sized: list[tuple[float, Candidate]], limit: float, own_chunks: int) -> list[tuple[float, Candidate]]:
    """Leaves out candidates that use more loss chunks than the run but would fit with the vocabulary undivided."""
    undivided = {(c.grad_accum, c.policy) for size, c in sized if c.loss_chunks == 1 and size <= limit}
    usual = {1, own_chunks}
    return [(size, c) for size, c in sized if c.loss_chunks in usual or (c.grad_accum, c.policy) not in undivided]
