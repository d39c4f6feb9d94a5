"""Faulty steps: found by the device in the step itself, whose update is then left out of the state.

A step is faulty if its loss or gradient norm is not finite or, if the settings say so, a spike: more than `spike_sigma`
standard deviations above the running mean of the good steps before it (the rule of OLMo-core's skipping optimizers,
on both signals; OLMo Team 2024, "2 OLMo 2 Furious", saw spikes of the gradient norm before those of the loss). Mean and
variance are exponential averages with the decay and the warm-up of ZClip (Kumar et al. 2025, "ZClip: Adaptive Spike
Mitigation for LLM Pre-Training").

What must hold: the decision is a function of global values and of the state, which a checkpoint stores; so all
processes decide alike, and a resumed run decides as an undisturbed one. Nothing waits for the host.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array, Float
from lifecycle.parallel.mesh import AnyMesh
from lifecycle.training.config import FaultsConfig
from lifecycle.training.state import TrainState

DECAY = 0.97  # of mean and variance by step
WARMUP = 25  # good steps before any is called a spike
# A standard deviation counts as at least this share of the mean: a curve that is nearly flat has no tiny spikes.
SMALLEST = 1e-3
SIGNALS = ("loss", "grad_norm")
IN_ROW = "faults_in_row"  # the metric: how many steps were faulty in a row, up to and including this one


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FaultState:
    """What the step knows of the steps before it. Also used with shapes or shardings as leaves."""

    in_row: Any  # int32: faulty steps just before
    skipped: Any  # int32: faulty steps in all
    seen: Any  # int32: good steps
    mean: Any  # float32 [2]: of their losses and gradient norms
    variance: Any  # float32 [2]


def first_faults() -> FaultState:
    """The state before the first step, on the host."""
    zero, pair = np.int32(0), np.zeros(2, np.float32)
    return FaultState(zero, zero, zero, pair, pair)


def fault_shardings(mesh: AnyMesh) -> FaultState:
    """Every device has all of it."""
    return jax.tree.map(lambda _: NamedSharding(mesh, P()), first_faults())


def abstract_faults(mesh: AnyMesh) -> FaultState:
    """Shapes and shardings, without any array."""
    at = NamedSharding(mesh, P())
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=at), first_faults())


def to_plain(faults: FaultState) -> dict[str, Any]:
    """The state as JSON-ready data, exact."""
    return {name: np.asarray(value).tolist() for name, value in asdict(jax.device_get(faults)).items()}


def from_plain(plain: Mapping[str, Any]) -> FaultState:
    """The state that `to_plain` made plain, on the host."""
    like = asdict(first_faults())
    return FaultState(**{name: np.asarray(plain[name], value.dtype) for name, value in like.items()})


def guarded(
    config: FaultsConfig, before: TrainState, after: TrainState, metrics: Mapping[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
    """(the state after a step that leaves a faulty update out, the metrics with `skipped` and `IN_ROW`).

    The learning rate's schedule goes on: it is of the run's steps, and ends with the run.
    """
    signals = jnp.stack([metrics[name] for name in SIGNALS])
    is_faulty = ~jnp.isfinite(signals).all() | is_spike(config.spike_sigma, before.faults, signals)

    def kept(new: Any, old: Any) -> Any:
        return new if _is_schedule(new) else jnp.where(is_faulty, old, new)

    trained = jax.tree.map(kept, after.trained, before.trained)
    opt_state = jax.tree.map(kept, after.opt_state, before.opt_state, is_leaf=_is_schedule)
    faults = counted(before.faults, signals, is_faulty)
    state = replace(after, trained=trained, opt_state=opt_state, faults=faults)
    return state, {**metrics, "skipped": faults.skipped, IN_ROW: faults.in_row}


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def is_spike(sigma: float | None, faults: FaultState, signals: Float[Array, "2"]) -> Array:
    """Whether a signal is too far above its mean, once there were enough good steps."""
    if sigma is None:
        return jnp.array(False)
    deviation = jnp.maximum(jnp.sqrt(faults.variance), SMALLEST * jnp.abs(faults.mean))
    return (faults.seen >= WARMUP) & (signals > faults.mean + sigma * deviation).any()


def counted(faults: FaultState, signals: Float[Array, "2"], is_faulty: Array) -> FaultState:
    """The state after a step. Until the weight of the past has grown to `DECAY`, mean and variance are those of all
    good steps (Finch 2009, "Incremental calculation of weighted mean and variance", section 9)."""
    past = jnp.minimum(DECAY, faults.seen / (faults.seen + 1))
    delta = signals - faults.mean
    mean = faults.mean + (1 - past) * delta
    variance = past * (faults.variance + (1 - past) * delta**2)
    return FaultState(
        in_row=jnp.where(is_faulty, faults.in_row + 1, 0),
        skipped=faults.skipped + is_faulty,
        seen=faults.seen + ~is_faulty,
        mean=jnp.where(is_faulty, faults.mean, mean),
        variance=jnp.where(is_faulty, faults.variance, variance),
    )
