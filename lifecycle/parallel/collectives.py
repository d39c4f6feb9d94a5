"""Collectives by logical axis, which do nothing without a mesh.

The names are `jax.lax`'s, extended where the behaviour differs. Inside a fully manual `jax.shard_map` each function
runs over the mesh axes behind a logical name (`parallel/mesh.py`) whose size is above one; outside, or on one device,
it returns its input. So the same model code runs on one device and on a mesh, and never sees a mesh.

Gradients: every device differentiates its own part of the loss, and the transposed collectives sum the others'
contributions. A value that is replicated over an axis (a logit's normaliser, a loss) counts once: its cotangents are
replicated too, and `psum_identity_grad` passes them through unchanged. `check_vma` is off: splash attention and
hand-written gradients do not declare what varies.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array
from lifecycle.parallel.axes import RULES

_REPLICATED: ContextVar[frozenset[str]] = ContextVar("replicated", default=frozenset())
_HIDDEN_IS_CUT: ContextVar[bool] = ContextVar("hidden_is_cut", default=False)


@contextmanager
def replicated(logical: str) -> Generator[None]:
    """While the block is traced, no array is sharded over this logical axis: its devices hold replicas.

    Inside, `all_gather` returns its input and `reduce_scatter` only reduces. A decode step has one position per row,
    which cannot be sharded over `norm_seq`.
    """
    token = _REPLICATED.set(_REPLICATED.get() | {logical})
    try:
        yield
    finally:
        _REPLICATED.reset(token)


@contextmanager
def hidden_cut(is_cut: bool) -> Generator[None]:
    """While the block is traced, and if `is_cut`, the devices that share a weight's `d_model` have their columns of the
    hidden states of all their rows: arrays are sharded over `hidden`, which otherwise has one shard."""
    token = _HIDDEN_IS_CUT.set(is_cut)
    try:
        yield
    finally:
        _HIDDEN_IS_CUT.reset(token)


def axes_of(logical: str) -> tuple[str, ...]:
    """The mesh axes that an array with this logical axis is sharded over: manual in the current trace, larger than
    one."""
    if logical in _REPLICATED.get() or (logical == "hidden" and not _HIDDEN_IS_CUT.get()):
        return ()
    return _manual_axes(logical)


def _manual_axes(logical: str) -> tuple[str, ...]:
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(axis for axis in RULES[logical] if axis in mesh.manual_axes and mesh.shape[axis] > 1)


def axis_size(logical: str) -> int:
    """The number of devices that an array with this logical axis is sharded over."""
    mesh, size = jax.sharding.get_abstract_mesh(), 1
    for axis in axes_of(logical):
        size *= mesh.shape[axis]
    return size


def axis_index(logical: str) -> Array | int:
    """The index of the shard that this device holds."""
    axes = axes_of(logical)
    return jax.lax.axis_index(axes) if axes else 0


def all_gather(x: Array, logical: str, dim: int) -> Array:
    """The full dimension `dim` from its shards; the gradient is reduce-scattered.

    Mesh axes are gathered one after the other, the innermost first: over two at once the TPU compiler emits a sum of
    zero-filled arrays, with twice the traffic (all attention weights of Mixtral with `fsdp=8 x expert=8` on a v5p
    4x4x4).
    """
    for axis in reversed(axes_of(logical)):
        x = jax.lax.all_gather(x, axis, axis=dim, tiled=True)
    return x


def reduce_scatter(x: Array, logical: str, dim: int) -> Array:
    """This device's shard of dimension `dim` of the sum over the axis; the gradient is gathered."""
    if logical in _REPLICATED.get():
        axes = _manual_axes(logical)
        return jax.lax.psum(x, axes) if axes else x
    for axis in axes_of(logical):  # as in `all_gather`
        x = jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)
    return x


def all_to_all(x: Array, logical: str, split: int, concat: int) -> Array:
    """Splits dimension `split` over the axis and concatenates the received parts along `concat`."""
    axes = axes_of(logical)
    return jax.lax.all_to_all(x, axes, split, concat, tiled=True) if axes else x


def own_shard(x: Array, logical: str, dim: int) -> Array:
    """This device's shard of dimension `dim` of a value that all have.

    A dynamic slice would be an operation of its own, before which a TPU's compiler copies no weights ahead: 25.1 ms for
    a decode step of Llama 3 70B on 16 chips of a v5e, and 19.6 with a choice among static slices.
    """
    num = axis_size(logical)
    return x if num == 1 else jax.lax.select_n(jnp.int32(axis_index(logical)), *jnp.split(x, num, dim))


def ppermute_next(x: Array, logical: str) -> Array:
    """The previous device's value; the first device gets the last one's."""
    axes, num = axes_of(logical), axis_size(logical)
    return jax.lax.ppermute(x, axes, [(i, (i + 1) % num) for i in range(num)]) if axes else x


def psum(x: Array, logical: str) -> Array:
    """The sum over the axis, for values that each device then uses differently: the gradient is summed too."""
    axes = axes_of(logical)
    return jax.lax.psum(x, axes) if axes else x


def psum_identity_grad(x: Array, logical: str) -> Array:
    """The sum over the axis, for values that all devices use in the same way: the gradient passes through unchanged."""
    axes = axes_of(logical)
    return _psum_identity_grad(x, axes) if axes else x


def pmax(x: Array, logical: str) -> Array:
    """The largest over the axis; not differentiated."""
    axes = axes_of(logical)
    return jax.lax.pmax(jax.lax.stop_gradient(x), axes) if axes else jax.lax.stop_gradient(x)


def replicated_share(x: Array, logical: str) -> Array:
    """This device's share of a replicated value: the shares sum to it. Undoes `psum_identity_grad`."""
    return _share(x, axis_size(logical)) if axis_size(logical) > 1 else x


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _share(x: Array, num: int) -> Array:
    return x / num


_share.defvjp(lambda x, num: (x / num, None), lambda num, _, grad: (grad,))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _psum_identity_grad(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.psum(x, axes)


_psum_identity_grad.defvjp(lambda x, axes: (jax.lax.psum(x, axes), None), lambda axes, _, grad: (jnp.asarray(grad),))
