"""Muon: orthogonalised momentum (Jordan et al. 2024), and how its work is distributed over a mesh.

The update is scaled to Adam's usual size, `0.2 sqrt(max(rows, columns))` (Liu et al. 2025, "Muon is Scalable for LLM
Training", section 2.2), so that one learning rate and one weight decay serve both. Stacked layers are a batch of
matrices.

Orthogonalising needs full matrices, which are sharded. Each is sent to one device: an all-to-all before the products
reshards the layers over the same mesh axes, and one after them reverses it. With an all-gather every device would
receive and orthogonalise every matrix.

With `neuron_beta2`, NorMuon (Li et al. 2025, "NorMuon: Making Muon more efficient and scalable", algorithm 1): an
orthogonalised update's columns, one for each output neuron here, are divided by the root of a running mean of their
squares, and the matrix keeps the size that it has on average.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lifecycle.core.typing import Array, Float
from lifecycle.model.parameter import Axes
from lifecycle.model.params import Params
from lifecycle.parallel.collectives import all_to_all, axis_size
from lifecycle.parallel.mesh import AnyMesh, spec

# Five quintic polynomials, each the minimax choice given the ones before (Amsel et al. 2025, "The Polar Express",
# algorithm 1, lower bound 1e-3, with its safety factor 1.01 on all but the last).
POLAR_EXPRESS = (
    (8.205160414005566, -22.901934987056034, 16.460724910180303),
    (4.066395159942799, -2.8611543470860546, 0.5183995226040655),
    (3.909595044233003, -2.8233508663174697, 0.5250370147229885),
    (3.2855640171637236, -2.4153019596003586, 0.4852941093134937),
    (2.2774640019498994, -1.6198217760479465, 0.3984858939343595),
)


class MuonState(NamedTuple):
    """Muon's state, trees like that of the parameters: the momentum and, for NorMuon, the neurons' mean squares, whose
    rows have size 1."""

    momentum: Params
    squares: Params | tuple[()] = ()


def scale_by_muon(
    momentum: float, parameters: Params, mesh: AnyMesh, neuron_beta2: float = 0.0
) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised. Leaves are stacks of the layers' matrices, `[layers, ..., rows, columns]`,
    sharded over `mesh` as `parameters` (a tree of `Parameter`s with the leaves' paths) declares. `neuron_beta2`: the
    decay of NorMuon's mean squares; 0: none are kept."""
    axes = {path: parameter.axes for path, parameter in jax.tree_util.tree_leaves_with_path(parameters)}

    def init(params: optax.Params) -> MuonState:
        squares = jax.tree.map(lambda p: jnp.zeros_like(p[..., :1, :]), params) if neuron_beta2 else ()
        return MuonState(jax.tree.map(jnp.zeros_like, params), squares)

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[Params, MuonState]:
        del params
        average = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, state.momentum, updates)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, average, updates)
        if not neuron_beta2:
            return directions(ahead), MuonState(average)
        found = directions(ahead)
        squares = jax.tree.map(
            lambda s, u: neuron_beta2 * s + (1 - neuron_beta2) * _of_neurons(u), state.squares, found
        )
        return jax.tree.map(_balanced, found, squares), MuonState(average, squares)

    def directions(ahead: Params) -> Params:
        specs = jax.tree_util.tree_map_with_path(lambda path, _: spec(*axes[path]), ahead)

        def local(parts: Params) -> Params:
            return jax.tree_util.tree_map_with_path(lambda path, part: _direction(part, axes[path]), parts)

        return jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False)(ahead)

    return optax.GradientTransformation(init, update)


def _of_neurons(update: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch 1 columns"]:
    return jnp.mean(update**2, axis=-2, keepdims=True)


def _balanced(
    update: Float[Array, "*batch rows columns"], squares: Float[Array, "*batch 1 columns"]
) -> Float[Array, "*batch rows columns"]:
    """The update with its neurons scaled, at a root mean square of 0.2: Adam's usual size. A constant factor of the
    mean squares cancels, so that they need no correction for the first steps."""
    scaled = update * jax.lax.rsqrt(squares + 1e-20)
    size = jnp.sqrt(jnp.mean(scaled**2, axis=(-2, -1), keepdims=True))
    return scaled * (0.2 / (size + 1e-20))


def _direction(stack: Float[Array, "L *batch rows columns"], axes: Axes) -> Float[Array, "L *batch rows columns"]:
    """This device's shard of the orthogonalised matrices, from its shard of a stack with these logical axes. If the
    number of devices does not divide a stack's layers, it is padded with zeros, which stay zeros."""
    cut = [(dim, name) for dim, name in enumerate(axes) if dim >= len(axes) - 2 and name is not None]
    num = math.prod(axis_size(name) for _, name in cut)
    full = jnp.pad(stack, [(0, -stack.shape[0] % num)] + [(0, 0)] * (stack.ndim - 1))
    for dim, name in cut:
        full = all_to_all(full, name, 0, dim)
    full = orthogonalise(full) * 0.2 * max(full.shape[-2:]) ** 0.5
    for dim, name in reversed(cut):
        full = all_to_all(full, name, dim, 0)
    return full[: stack.shape[0]]


def orthogonalise(matrix: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch rows columns"]:
    """Approximately the nearest semi-orthogonal matrix, `U V'` of the singular value decomposition: its singular values
    are between 0.81 and 1.13 if the input's are above 1e-3 of its Frobenius norm."""
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.swapaxes(-1, -2) if is_tall else matrix
    x /= jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) * 1.01 + 1e-20
    for step, (a, b, c) in enumerate(POLAR_EXPRESS):
        if step < len(POLAR_EXPRESS) - 1:
            a, b, c = a / 1.01, b / 1.01**3, c / 1.01**5
        gram = jnp.einsum("...ij,...kj->...ik", x, x)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.swapaxes(-1, -2) if is_tall else x
