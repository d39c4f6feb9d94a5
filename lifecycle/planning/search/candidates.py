"""The ways to run a train step that a search compares: meshes, micro-batches, what layers keep, parts of the loss.

What must hold: every candidate is one that a run could have. The loss goes through the vocabulary once, or in the run's
own `loss_chunks`; in `LOSS_CHUNKS` parts, which cost a second product, only where the candidate does not fit otherwise
(`search.py`).
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lifecycle.core.config import ConfigError
from lifecycle.model.config import ModelConfig, Remat, RematName
from lifecycle.parallel.axes import RULES, MeshConfig
from lifecycle.planning.topology import Topology
from lifecycle.training.config import CrossEntropyConfig

MAX_TENSOR = 16  # beyond, products of these models are too narrow for the matrix units
MIN_CONTEXT_PART = 4096  # positions of a row that a device should still have: less is cheaper cut over tensor
LOSS_CHUNKS = 16
KEYS: list[RematName] = ["k", "v"]
OFFLOADED: tuple[tuple[RematName, ...], ...] = (("input",), ("input", "middle"))


@dataclass(frozen=True)
class Candidate:
    """One way to run the step."""

    mesh: MeshConfig
    grad_accum: int
    policy: str  # the name of `remat`
    remat: Remat
    loss_chunks: int = 1

    @property
    def name(self) -> str:
        chunks = f", loss_chunks={self.loss_chunks}" if self.loss_chunks > 1 else ""
        return f"{mesh_name(self.mesh)}, grad_accum={self.grad_accum}{chunks}, keeps {self.policy}"

    def keeps(self, *names: RematName) -> bool:
        """Whether all of them wait for the backward pass, wherever."""
        return all(self.remat.get(name, "recompute") != "recompute" for name in names)

    @property
    def is_offloading(self) -> bool:
        return "offload" in self.remat.values()


def is_behind(candidate: Candidate, other: Candidate) -> bool:
    """Whether `other` is the same but has more at hand when the backward pass begins: it can only be faster."""
    if (candidate.mesh, candidate.grad_accum, candidate.loss_chunks) != (
        other.mesh, other.grad_accum, other.loss_chunks,
    ):  # fmt: skip
        return False
    places = ("recompute", "offload", "save")
    ours, theirs = ({"input": "save", **c.remat} for c in (candidate, other))
    return all(
        places.index(theirs.get(name, "recompute")) >= places.index(ours.get(name, "recompute"))
        for name in {*ours, *theirs}
    )


def mesh_name(mesh: MeshConfig) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in mesh.plain().items() if size > 1) or "one device"


def axis_size(mesh: MeshConfig, logical: str) -> int:
    return math.prod(getattr(mesh, axis) for axis in RULES[logical])


def policies(model: ModelConfig, mesh: MeshConfig, own: Remat | None) -> dict[str, Remat]:
    """What a layer may keep beside its input, by name; each also with the input, or the hidden states on either side of
    attention, in the host's memory. `own` is the run's, as far as the layers have its names on this mesh: it is among
    them, unless it is `None` (everything, which is for models that need no search)."""
    names = model.remat_names(mesh)
    latents: list[RematName] = [name for name in names if name.endswith("_latent")]
    kept: dict[str, list[RematName]] = {
        "nothing": [],
        "attention": ["attention_out"],
        "attention, latents" if latents else "attention, k, v": ["attention_out", *(latents or KEYS)],
        "attention, q, k, v": ["attention_out", *latents, "q", *KEYS],
        "attention, v, gate, up": ["attention_out", *latents, "v", "gate", "up"],
        "all products": [name for name in names if name != "input"],
    }
    found: dict[str, Remat] = {name: dict.fromkeys(members, "save") for name, members in kept.items()}
    saved = tuple(found.items())
    for which in OFFLOADED:
        moved: Remat = dict.fromkeys(which, "offload")
        found |= {f"{name}, {' and '.join(which)} offloaded": {**policy, **moved} for name, policy in saved}
    fitting = known_names(model, mesh, own)
    if fitting is not None and fitting not in found.values():
        found["what the config keeps"] = fitting
    return found


def known_names(model: ModelConfig, mesh: MeshConfig, remat: Remat | None) -> Remat | None:
    """A policy without the names that layers do not have on this mesh."""
    names = model.remat_names(mesh)
    return None if remat is None else {name: what for name, what in remat.items() if name in names}


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
    mesh: MeshConfig, topology: Topology, model: ModelConfig, train: CrossEntropyConfig, check: Check
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
        variants = [Candidate(mesh, accum, policy, remat, chunks) for policy, remat in kept.items()]
        try:
            check(variants[0])
        except ConfigError as error:
            reasons.append(error)
        else:
            found += variants
    if not found:
        raise reasons[0]
    return found
