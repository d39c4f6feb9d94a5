"""A train step by arithmetic alone: for GPUs, whose programs cannot be compiled where there is none.

Memory and time are the search's (`footprint.py`, `forecast.py`), whose constants come from programs compiled for TPUs,
with what is different on a GPU: cuDNN's forward kernel runs again under any remat policy, and a mask of segments is an
array `[rows, T, S]` in bfloat16 (`kernels/cudnn.py`). What must hold: all GPUs are in one node, behind one switch.

The step is given three times: with collectives hidden behind the computation as far as they go, with none hidden
(which is what a search ranks by), and with products and kernels at the slow shares and none hidden. The shares of the
peak that products and kernels reach are the search's, which come from programs for TPUs; nothing shows them for GPUs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lifecycle.core.config import ConfigError
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.compiled.kernels import ASSUMED_SHARE
from lifecycle.planning.estimate.network import Network
from lifecycle.planning.estimate.work import train_work
from lifecycle.planning.search.candidates import Candidate, Check, candidates, meshes
from lifecycle.planning.search.footprint import COMPUTE_BYTES, device_share
from lifecycle.planning.search.forecast import PRODUCT_SHARE, Forecast, forecast
from lifecycle.planning.topology import Topology, check_fits
from lifecycle.training.config import TrainConfig

GPUS_PER_NODE = 8
SLOW = 0.75  # of both shares
# What JAX takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise (docs.jax.dev, "GPU memory
# allocation")
DEFAULT_FRACTION = 0.75


@dataclass(frozen=True)
class ArithmeticPlan:
    """One way to run the step, by arithmetic; per device unless a name says otherwise."""

    candidate: Candidate
    expected: Forecast
    mask_bytes: float
    tokens_per_s: float  # of all devices, at `step_s`
    model_flops: float  # causal attention counted half
    peak_flops: float  # per second
    steps: int  # of the whole run
    usd_per_hour: float | None  # of all devices; None: no price known
    precision: str | None  # the setting, which is not counted

    @property
    def total_bytes(self) -> float:
        """The peak of the step."""
        return self.expected.footprint.total_bytes + self.mask_bytes

    @property
    def step_s(self) -> float:
        """Seconds of a step with no collective hidden."""
        return self.expected.step_s

    @property
    def fastest_s(self) -> float:
        """Seconds with collectives hidden behind the computation as far as they go."""
        return max(self.expected.compute_s, self.expected.network_s) + self.expected.host_s

    @property
    def slowest_s(self) -> float:
        """Seconds with products and kernels at the slow shares, and nothing hidden."""
        return self.step_s + self.expected.compute_s * (1 / SLOW - 1)

    def days(self, seconds: float) -> float:
        """The whole run at this time of a step."""
        return self.steps * seconds / 86400

    def usd(self, seconds: float) -> float | None:
        """The whole run's price at this time of a step; None: no price known."""
        return None if self.usd_per_hour is None else 24 * self.days(seconds) * self.usd_per_hour

    def mfu(self, seconds: float) -> float:
        """The model's FLOPs over the peak in this time."""
        return self.model_flops / (seconds * self.peak_flops)

    def shares(self) -> Mapping[str, float]:
        """The stated shares of the peak that products and kernels are taken to reach."""
        return {"products": PRODUCT_SHARE, "kernels": ASSUMED_SHARE}


def require_one_node(topology: Topology) -> None:
    """Raises `ConfigError` for more GPUs than a node has, or several slices: between nodes nothing here holds."""
    if topology.num_devices > GPUS_PER_NODE or topology.num_slices > 1:
        raise ConfigError(
            f"topology={topology.name}: GPUs are planned by arithmetic, for one node of up to {GPUS_PER_NODE}; "
            f"choose {topology.chip.name}:{GPUS_PER_NODE}, or a TPU topology, whose programs are compiled"
        )


def plan_by_arithmetic(
    model: ModelConfig, train: TrainConfig, candidate: Candidate, topology: Topology
) -> ArithmeticPlan:
    """The plan of one candidate. Raises `ConfigError` if its mesh does not use exactly the topology's devices."""
    require_one_node(topology)
    sizes = {axis: getattr(candidate.mesh, axis) for axis in AXES}
    check_fits(topology, sizes)
    again = replace(candidate, remat={name: how for name, how in candidate.remat.items() if name != "attention_out"})
    timed = forecast(model, train, again, topology, _switch(topology, candidate.mesh))
    kept = forecast(model, train, candidate, topology, _switch(topology, candidate.mesh))
    expected = replace(timed, footprint=kept.footprint, network_s=kept.network_s, host_s=kept.host_s)
    work, price = train_work(model, train), topology.chip.price_per_hour
    tokens = device_share(model, train, candidate).tokens
    return ArithmeticPlan(
        candidate=candidate,
        expected=expected,
        mask_bytes=COMPUTE_BYTES * tokens * float(train.seq_len),
        tokens_per_s=work.tokens / expected.step_s,
        model_flops=work.flops / topology.num_devices,
        peak_flops=topology.chip.bf16_flops,
        steps=train.steps,
        usd_per_hour=None if price is None else topology.num_chips * price,
        precision=train.precision,
    )


def ranked(
    model: ModelConfig, train: TrainConfig, topology: Topology, check: Check, limit: float
) -> list[ArithmeticPlan]:
    """All candidates of at most `limit` bytes, the fastest first, and of equal ones the smallest."""
    require_one_node(topology)
    plans: list[ArithmeticPlan] = []
    for mesh in meshes(topology, model, train.seq_len):
        try:
            possible = candidates(mesh, topology, model, train, check)
        except ConfigError:  # a mesh that cuts no batch, row or head of this run
            continue
        plans += [plan_by_arithmetic(model, train, candidate, topology) for candidate in possible]
    fitting = [plan for plan in plans if plan.total_bytes <= limit]
    return sorted(fitting, key=lambda plan: (plan.step_s, plan.total_bytes))


def _switch(topology: Topology, mesh: MeshConfig) -> Network:
    """The network of a node, in which every GPU reaches every other at its full rate, so that places do not matter."""
    sizes = tuple(getattr(mesh, axis) for axis in AXES)
    return Network(topology, MeshShape(AXES, sizes, 1), np.zeros((math.prod(sizes), 5), dtype=np.int64))
