"""The search for a mesh, micro-batch and rematerialisation: enumerate, prune by arithmetic, let the compiler decide.

What must hold: every candidate that is not compiled has its reason, and the pick is the fastest of the compiled ones
that fit, by the same estimate that a single plan shows.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from lifecycle.core.config import ConfigError
from lifecycle.core.mesh import MeshConfig, require_divides
from lifecycle.model.config import ModelConfig
from lifecycle.planning.collectives import MeshShape
from lifecycle.planning.layout import POLICIES, Candidate, Forecast, forecast, mesh_name
from lifecycle.planning.network import Network, places_of
from lifecycle.planning.plan import Planned
from lifecycle.planning.topology import Topology, mesh_over
from lifecycle.training.config import TrainConfig

NUM_COMPILED = 4
MAX_TENSOR = 16  # beyond, products of these models are too narrow for the matrix units
MIN_CONTEXT_PART = 4096  # positions of a row that a device should still have: less is cheaper cut over tensor
SLACK = 0.95  # arithmetic below this share of the memory goes to the compiler


@dataclass(frozen=True)
class Rejected:
    """A candidate, or a mesh, that was not compiled, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Compiled:
    candidate: Candidate
    forecast: Forecast
    planned: Planned


@dataclass(frozen=True)
class Found:
    """A search's outcome; `pick` is `None` when nothing fits."""

    pick: Compiled | None
    compiled: tuple[Compiled, ...]
    rejected: tuple[Rejected, ...]
    num_candidates: int

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return TypeAdapter(Found).dump_python(self, mode="json")


def meshes(topology: Topology, model: ModelConfig, train: TrainConfig) -> tuple[list[MeshConfig], list[Rejected]]:
    """All meshes over the topology that the model and the batch can be cut by, and those that they cannot."""
    kept, rejected = [], []
    for mesh in _factorings(topology, model, train):
        try:
            model.check_mesh(mesh)
            require_divides(mesh, "batch", train.global_batch_size, "global_batch_size")
            require_divides(mesh, "seq", train.seq_len, "seq_len")
            kept.append(mesh)
        except ConfigError as error:
            rejected.append(Rejected(mesh_name(mesh), str(error)))
    return kept, rejected


def _factorings(topology: Topology, model: ModelConfig, train: TrainConfig) -> Iterator[MeshConfig]:
    devices, slices = topology.num_devices, topology.num_slices
    experts = model.moe.num_experts if model.moe is not None else 1
    context = max(1, train.seq_len // MIN_CONTEXT_PART)
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


def candidates(mesh: MeshConfig, train: TrainConfig) -> Iterator[Candidate]:
    """Micro-batches that leave every device whole rows, each with every policy."""
    ways = mesh.replica * mesh.fsdp * mesh.expert
    for accum in _divisors(train.global_batch_size, train.global_batch_size):
        if (train.global_batch_size // accum) % ways == 0:
            yield from (Candidate(mesh, accum, policy) for policy in POLICIES)


def search(
    topology: Topology,
    model: ModelConfig,
    train: TrainConfig,
    compile_one: Callable[[Candidate], Planned],
    on_compiled: Callable[[Compiled], None],
    most: int = NUM_COMPILED,
) -> Found:
    """Compiles the `most` best candidates by arithmetic; `on_compiled` hears of each as soon as it is known.

    A candidate that the compiler refuses for want of memory does not use up one of the `most`, up to twice that many.
    """
    whole, rejected = meshes(topology, model, train)
    ranked, refused, number = _ranked(topology, model, train, whole)
    compiled: list[Compiled] = []
    for candidate, expected in ranked:
        if sum(c.planned.fits for c in compiled) >= most or len(compiled) >= 2 * most:
            break
        compiled.append(Compiled(candidate, expected, compile_one(candidate)))
        on_compiled(compiled[-1])
    fitting = [c for c in compiled if c.planned.fits]
    pick = min(fitting, key=lambda c: _step_s(c.planned), default=None)
    best = ranked[0][1].step_s if ranked else 0.0
    slower = [
        Rejected(c.name, f"by arithmetic {f.step_s / best:.2f} times the fastest's step")
        for c, f in ranked[len(compiled) :]
    ]
    losers = [Rejected(c.candidate.name, _why_not(c, pick)) for c in compiled if c is not pick]
    return Found(pick, tuple(compiled), (*losers, *slower, *refused, *rejected), number + len(rejected))


def _ranked(
    topology: Topology, model: ModelConfig, train: TrainConfig, whole: Sequence[MeshConfig]
) -> tuple[list[tuple[Candidate, Forecast]], list[Rejected], int]:
    """Candidates that should fit, the fastest first; those that should not; how many there were."""
    fitting, refused, number = [], [], 0
    limit = SLACK * topology.chip.hbm_bytes
    for mesh in whole:
        laid = mesh_over(topology, mesh)
        shape = MeshShape(tuple(laid.axis_names), laid.devices.shape, topology.num_slices)
        network = Network(topology, shape, places_of(laid.devices))
        for candidate in candidates(mesh, train):
            number += 1
            expected = forecast(model, train, candidate, topology, network)
            if expected.memory_bytes <= limit:
                fitting.append((candidate, expected))
            else:
                needs, has = expected.memory_bytes / 1e9, topology.chip.hbm_bytes / 1e9
                refused.append(Rejected(candidate.name, f"by arithmetic {needs:,.0f} GB of the device's {has:,.0f} GB"))
    return sorted(fitting, key=lambda pair: pair[1].step_s), refused, number


def _step_s(planned: Planned) -> float:
    assert planned.estimate is not None, "a program that fits has an estimate"
    return planned.estimate.step_s


def _why_not(compiled: Compiled, pick: Compiled | None) -> str:
    planned = compiled.planned
    if not planned.fits:
        return f"the compiler: needs {planned.needs_bytes / 1e9:,.1f} GB"
    assert pick is not None
    return f"compiled: {_step_s(planned) / _step_s(pick.planned):.2f} times the pick's step"


def why(found: Found) -> list[str]:
    """Why the pick: what it saves against the next best, term by term."""
    if found.pick is None:
        return [
            "Nothing that was compiled fits; take more devices, or a smaller global_batch_size with more grad_accum."
        ]
    best = found.pick.planned.estimate
    assert best is not None
    others = [c for c in found.compiled if c is not found.pick and c.planned.fits]
    lines = [f"{found.pick.candidate.name}: {best.step_s * 1e3:,.1f} ms a step, the fastest of those compiled."]
    if others:
        second = min(others, key=lambda c: _step_s(c.planned))
        next_ = second.planned.estimate
        assert next_ is not None
        lines.append(f"Next best, {second.candidate.name}: {next_.step_s * 1e3:,.1f} ms.")
        for name in ("compute_s", "kernel_s", "exposed_s"):
            more = (getattr(next_.times, name) - getattr(best.times, name)) * 1e3
            words = {"compute_s": "computing", "kernel_s": "in kernels", "exposed_s": "waiting for the network"}
            lines.append(f"The pick spends {abs(more):,.1f} ms {'less' if more >= 0 else 'more'} {words[name]}.")
    return lines
