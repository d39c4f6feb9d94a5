"""The training state: trained and frozen parameters, separately, and the optimizer's state.

Gradients, optimizer state and checkpoints cover the trained parameters only. Both parts are trees like the parameters',
each without the other's leaves; `params` merges them. Parameters are sharded by their logical axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import PRNGKeyArray
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, init_params, logical_axes
from lifecycle.model.stacks import REFERENCE
from lifecycle.parallel.mesh import AnyMesh, tree_shardings, tree_specs
from lifecycle.training.average import average_of
from lifecycle.training.freeze import frozen_part, merged, split
from lifecycle.training.rounding import Hold, widened
from lifecycle.training.transfer import at_width


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state that a step takes and returns; `step` counts finished steps. Also used with shapes or shardings as
    leaves."""

    trained: Params
    frozen: Params
    opt_state: Any
    step: Any  # an int32 scalar, or its sharding
    faults: Any = ()  # a `FaultState` (`training/faults.py`), if the step looks for faults

    @property
    def saved(self) -> dict[str, Any]:
        """The arrays that each checkpoint stores: also of a fixed reference, which no reader of weights opens."""
        beside = {REFERENCE: self.frozen[REFERENCE]} if REFERENCE in self.frozen else {}
        return {"params": self.trained, "opt_state": self.opt_state, **beside}

    @property
    def kept(self) -> Params:
        """The frozen parameters that are stored once."""
        return {name: array for name, array in self.frozen.items() if name != REFERENCE}

    @property
    def params(self) -> Params:
        """All parameters."""
        return merged(self.trained, self.frozen)

    @property
    def weights(self) -> Params:
        """The parameters that the run is for: with their average, if it keeps one."""
        average = average_of(self.opt_state)
        return self.params if average is None else merged(average, self.frozen)


def param_specs(config: ModelConfig) -> Any:
    """Partition specs of the parameters, as a tree like theirs."""
    return tree_specs(logical_axes(config))


def state_shardings(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: AnyMesh, freeze: Sequence[str] = ()
) -> TrainState:
    """Shardings of the full state: parameters by their logical axes, optimizer state like its parameters. `freeze`:
    patterns as in `frozen_part`."""
    trained, frozen = split(tree_shardings(mesh, logical_axes(config)), frozen_part(config, freeze))
    everywhere = NamedSharding(mesh, P())
    shardings = dict(jax.tree_util.tree_leaves_with_path(trained))

    def of_moment(path: tuple[Any, ...], shape: Any) -> NamedSharding:
        # a moment's path ends with its parameter's: ("mu", "blocks", "attention", "q") and ("blocks", "attention", "q")
        like = next((shardings[path[i:]] for i in range(len(path)) if path[i:] in shardings), everywhere)
        cut = any(axis is not None and size == 1 for axis, size in zip(like.spec, shape.shape, strict=False))
        if not cut:
            return like
        # a dimension over which the moment is a mean has size 1
        axes = (None if size == 1 else axis for axis, size in zip(like.spec, shape.shape, strict=False))
        return NamedSharding(mesh, P(*axes))

    shapes = jax.eval_shape(lambda key: optimizer.init(split(init_params(config, key), frozen)[0]), jax.random.key(0))
    return TrainState(trained, frozen, jax.tree_util.tree_map_with_path(of_moment, shapes), everywhere)


def abstract_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, shardings: TrainState, hold: Hold | None = None
) -> TrainState:
    """Shapes and shardings of the full state, without any array. `hold`: as in `training/rounding.py`."""

    def leaf(shape: Any, where: NamedSharding) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)

    fresh = partial(_fresh, optimizer, shardings.frozen, hold)
    shapes = jax.eval_shape(lambda: fresh(init_params(config, jax.random.key(0))))
    return jax.tree.map(leaf, shapes, shardings)


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    key: PRNGKeyArray,
    base_width: int | None = None,
    hold: Hold | None = None,
) -> TrainState:
    """A fresh state, created sharded: no host holds more than its shard. `base_width`: as in `OptimizerConfig`; `hold`:
    as in `training/rounding.py`."""

    def fresh(key: PRNGKeyArray) -> TrainState:
        return _fresh(optimizer, shardings.frozen, hold, at_width(config, base_width, init_params(config, key)))

    return jax.jit(fresh, out_shardings=shardings)(key)


def state_from_params(
    params: Params, optimizer: optax.GradientTransformation, shardings: TrainState, hold: Hold | None = None
) -> TrainState:
    """A state with given parameters and a fresh optimizer: for a stage that starts from the previous one's weights."""
    return jax.jit(partial(_fresh, optimizer, shardings.frozen, hold), out_shardings=shardings)(params)


def _fresh(optimizer: optax.GradientTransformation, frozen: Params, hold: Hold | None, params: Params) -> TrainState:
    trained, kept = split(params, frozen)
    trained = trained if hold is None else hold(trained)
    return TrainState(trained, kept, optimizer.init(widened(trained)), jnp.zeros((), jnp.int32))
