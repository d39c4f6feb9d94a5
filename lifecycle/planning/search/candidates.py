"""Candidates: the ways to run a train step that a search compares, by mesh, micro-batch, saved arrays and loss chunks.

What must hold: every candidate is a possible run. The loss processes the vocabulary whole or in the run's own
`loss_chunks`; it uses `LOSS_CHUNKS` chunks, which cost a second product, only if the candidate does not fit otherwise
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
from lifecycle.training.config import TrainConfig

MAX_TENSOR = 16  # beyond it, these models' products are too narrow for the matrix units
MIN_CONTEXT_PART = 4096  # least positions of a row per device: below this, sharding over `tensor` is cheaper
LOSS_CHUNKS = 16
KEYS: list[RematName] = ["k", "v"]
OFFLOADED: tuple[tuple[RematName, ...], ...] = (("input",), ("input", "middle"))


@dataclass(frozen=True)
class Candidate:
    """One way to run the step."""

    mesh: MeshConfig
    grad_accum: int
    policy: str  # the name of the policy in `remat`
    remat: Remat
    loss_chunks: int = 1

    @property
    def name(self) -> str:
        """The mesh and the settings that differ between candidates on it."""
        chunks = f", loss_chunks={self.loss_chunks}" if self.loss_chunks > 1 else ""
        return f"{mesh_name(self.mesh)}, grad_accum={self.grad_accum}{chunks}, keeps {self.policy}"

    def applied(self, train: TrainConfig) -> TrainConfig:
        """A stage's settings with the candidate's in place of its own; the mesh is separate."""
        changes = {"grad_accum": self.grad_accum, "remat": self.remat, "loss_chunks": self.loss_chunks}
        return train.model_copy(update=changes)

    def keeps(self, *names: RematName) -> bool:
        """Whether all of these arrays are saved for the backward pass, on the device or offloaded."""
        return all(self.remat.get(name, "recompute") != "recompute" for name in names)

    @property
    def is_offloading(self) -> bool:
        """Whether any array is offloaded to host memory."""
        return "offload" in self.remat.values()


def is_dominated(candidate: Candidate, other: Candidate) -> bool:
    """Whether `other` differs only by keeping more on the device for the backward pass: it can only be faster."""
    if (candidate.mesh, candidate.grad_accum, candidate.loss_chunks) != (
        other.mesh, other.grad_accum, other.loss_chunks,
    ):  # fmt: skip
        return False
    order = ("recompute", "offload", "save")  # the slowest first
    ours, theirs = ({"input": "save", **c.remat} for c in (candidate, other))
    return all(
        order.index(theirs.get(name, "recompute")) >= order.index(ours.get(name, "recompute"))
        for name in {*ours, *theirs}
    )


def mesh_name(mesh: MeshConfig) -> str:
    """The axes that are larger than one: `fsdp=16 x tensor=4`."""
    return " x ".join(f"{axis}={size}" for axis, size in mesh.plain().items() if size > 1) or "one device"


def axis_size(mesh: MeshConfig, logical: str) -> int:
    """The number of devices that a logical axis is sharded over."""
    return math.prod(getattr(mesh, axis) for axis in RULES[logical])


def policies(model: ModelConfig, mesh: MeshConfig, own: Remat | None) -> dict[str, Remat]:
    """Remat policies by name: the arrays that a layer keeps in addition to its input.

    Each policy also comes with the input offloaded, and with the hidden states on either side of attention offloaded.
    The run's own policy is included, without the names that layers do not have on this mesh, unless it is `None`
    (everything is kept, which is for models that need no search).
    """
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
    saving: dict[str, Remat] = {name: dict.fromkeys(members, "save") for name, members in kept.items()}
    options = dict(saving)
    for which in OFFLOADED:
        moved: Remat = dict.fromkeys(which, "offload")
        options |= {f"{name}, {' and '.join(which)} offloaded": {**remat, **moved} for name, remat in saving.items()}
    fitting = known_names(model, mesh, own)
    if fitting is not None and fitting not in options.values():
        options["what the config keeps"] = fitting
    return options


def known_names(model: ModelConfig, mesh: MeshConfig, remat: Remat | None) -> Remat | None:
    """A policy without the names that the layers do not have on this mesh."""
    names = model.remat_names(mesh)
    return None if remat is None else {name: what for name, what in remat.items() if name in names}


type Check = Callable[[Candidate], None]  # raises `ConfigError` for an impossible run


def meshes(topology: Topology, model: ModelConfig, seq_len: int) -> Iterator[MeshConfig]:
    """All meshes over the topology's devices, with replicas across slices."""
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
    mesh: MeshConfig, topology: Topology, model: ModelConfig, train: TrainConfig, check: Check
) -> list[Candidate]:
    """Every possible combination of micro-batch, policy and loss chunks on this mesh.

    If there is none, raises the `ConfigError` of the undivided batch.
    """
    kept = policies(model, mesh, train.remat)
    if topology.chip.host_bytes_per_s is None:
        kept = {name: remat for name, remat in kept.items() if "offload" not in remat.values()}
    possible: list[Candidate] = []
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
            possible += variants
    if not possible:
        raise reasons[0]
    return possible
