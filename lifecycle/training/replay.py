"""A step's loss and gradients computed twice, on two replicas: silent corruption shows as different bits.

A device that computes wrongly raises nothing. Large runs found such devices by replaying steps, which are deterministic
(Gemini Team 2023, "Gemini", section 3). Here each replica of the mesh computes the rows of its own, and then those of
the replica before it. What must hold: the weights, loss and gradients of the same rows have the same checksums on both.
The sum of an array's bits sees every single flipped bit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array, Batch, PyTree
from lifecycle.model.params import Params
from lifecycle.parallel.placement import on_mesh
from lifecycle.training.state import TrainState

type Local = Callable[[tuple[Params, Params], Batch], PyTree]  # what a device computes of its rows, unreduced
REPLICA = "replica"


def make_replay(local: Local, mesh: Mesh, shardings: TrainState, held: PyTree) -> jax.stages.Wrapped:
    """A jitted function of ((trained, frozen with `held`), batch), the latter being specs of what an objective holds
    beside its own model: checksums `[2, devices, arrays]`, uint32, devices in the mesh's
    order: of each device's weights and what `local` returns, for its own rows and for those of the replica before."""
    trained, frozen = jax.tree.map(lambda sharding: sharding.spec, (shardings.trained, shardings.frozen))
    specs = trained, frozen | held
    num, axes = mesh.shape[REPLICA], mesh.axis_names
    onwards = [(replica, (replica + 1) % num) for replica in range(num)]

    def device(parts: tuple[Params, Params], batch: Batch) -> Array:
        moved = {name: jax.lax.ppermute(array, REPLICA, onwards) for name, array in batch.items()}
        both = [jnp.stack(checksums((parts, local(parts, rows)))) for rows in (batch, moved)]
        return jax.lax.all_gather(jnp.stack(both), axes, axis=1)

    return jax.jit(on_mesh(device, mesh, specs, P()))


def checksums(tree: PyTree) -> list[Array]:
    """The sum of each array's bits, in words of its elements' size, modulo 2^32."""

    def checksum(array: Array) -> Array:
        word = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32).sum(dtype=jnp.uint32)

    return [checksum(array) for array in jax.tree.leaves(tree)]


def suspects(sums: np.ndarray, mesh: Mesh) -> list[Any]:
    """The devices whose checksums `[2, devices, arrays]` differ from those of both replicas beside them. Where only two
    differ from each other, there is no telling which of them is wrong: both."""
    own, moved = sums.reshape(2, *mesh.devices.shape, -1)
    differs = (np.roll(own, 1, axis=0) != moved).any(axis=-1)  # [replica, ...]: from the replica before, on its rows
    is_wrong = differs & np.roll(differs, -1, axis=0)
    is_open = differs & ~is_wrong & ~np.roll(is_wrong, 1, axis=0)
    return list(mesh.devices[is_wrong | is_open | np.roll(is_open, -1, axis=0)])
