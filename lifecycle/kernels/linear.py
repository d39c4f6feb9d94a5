"""A matrix product with its gradient written out, and the one behind gated activations.

Differentiating `x @ w` asks XLA for `(g' x)'`; on CPUs it then copies the activations transposed before each weight
gradient, 11 ms each at `[8192, 384]`. Contracting the row dimensions in place needs no copy.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.activation import GATES, Activation, gated
from lifecycle.kernels.adapted import AdaptedWeight, LowRankWeight, adapter_product
from lifecycle.kernels.group_scaled import GroupScaled, group_product
from lifecycle.kernels.packed import PackedWeight, packed_products
from lifecycle.kernels.quantised import (
    QuantisedTable,
    QuantisedWeight,
    has_kernels,
    is_widened,
    quantised_linear,
    widened_linear,
)
from lifecycle.kernels.weight_form import WeightForm

type Weight = (
    Float[Array, "D F"] | QuantisedWeight | GroupScaled | PackedWeight | ObservedWeight | AdaptedWeight | LowRankWeight
)


@dataclass(frozen=True)
class ObservedWeight(WeightForm):
    """A plain weight that shows the rows of its products to a function; outside of traces only."""

    weight: Float[Array, "D F"]
    see: Callable[[Float[Array, "*rows D"]], None]


def is_rounded(weight: Any) -> bool:
    """Whether a weight, or a table, is no plain array."""
    return isinstance(weight, QuantisedWeight | QuantisedTable | GroupScaled | PackedWeight)


def dense(weight: Weight) -> Float[Array, "*stack D F"]:
    """The weight, or a stack of them, as a plain array, in float32 if it was rounded: for what is not a plain
    product."""
    assert not isinstance(weight, AdaptedWeight | LowRankWeight), "what is no plain product has no adapters"
    match weight:
        case ObservedWeight():
            return weight.weight
        case QuantisedWeight():
            return weight.values.astype(jnp.float32) * weight.scale
        case GroupScaled():
            return weight.dense(jnp.float32)
        case PackedWeight():
            return weight.rows(jnp.arange(weight.shape[0])).T
    return weight


def linear(x: Float[Array, "*rows D"], weight: Weight) -> Float[Array, "*rows F"]:
    """`x @ weight`, in `x`'s dtype."""
    if isinstance(weight, ObservedWeight):
        weight.see(x)
        return _linear(x, weight.weight)
    return linears(x, (weight,))[0] if isinstance(weight, WeightForm) else _linear(x, weight)


def linears(x: Float[Array, "*rows D"], weights: Sequence[Weight]) -> tuple[Float[Array, "*rows _"], ...]:
    """`x` times each weight, in `x`'s dtype."""
    if any(isinstance(w, AdaptedWeight) for w in weights):
        outs = linears(x, [w.weight if isinstance(w, AdaptedWeight) else w for w in weights])
        # apart from the sums: XLA's product with a sum has other bits on CPUs, also for rows to which nothing is added
        outs = jax.lax.optimization_barrier(outs)
        each = zip(outs, weights, strict=True)
        return tuple(out + adapter_product(x, w) if isinstance(w, AdaptedWeight) else out for out, w in each)
    if low := [w for w in weights if isinstance(w, LowRankWeight)]:
        outs = linears(x, [w.weight if isinstance(w, LowRankWeight) else w for w in weights])
        added = iter(_low_rank_products(x, low))
        each = zip(outs, weights, strict=True)
        return tuple(_with_low_rank(out, next(added), w) if isinstance(w, LowRankWeight) else out for out, w in each)
    packed = tuple(w for w in weights if isinstance(w, PackedWeight))
    if len(packed) == len(weights):
        return packed_products(x, packed)
    quantised = tuple(w for w in weights if isinstance(w, QuantisedWeight) and has_kernels(x, w))
    if len(quantised) == len(weights):
        from lifecycle.kernels.quantised_linears import quantised_linears

        outs = quantised_linears(x.reshape(-1, x.shape[-1]), quantised)
        return tuple(out.reshape(*x.shape[:-1], -1) for out in outs)
    return tuple(_product(x, weight) for weight in weights)


def _low_rank_products(x: Float[Array, "*rows D"], weights: Sequence[LowRankWeight]) -> Iterator[Array]:
    """What the matrices beside the weights add to the products, before magnitudes. The first ones are one product: each
    alone would fill a tenth of a TPU's lanes."""
    ends = np.cumsum([w.a.shape[-2] for w in weights])[:-1].tolist()
    inner = _linear(x, jnp.concatenate([w.a for w in weights]).T)
    for part, weight in zip(jnp.split(inner, ends, axis=-1), weights, strict=True):
        yield _linear(part, weight.b)


def _with_low_rank(out: Array, added: Array, weight: LowRankWeight) -> Array:
    out = out + added
    # in float32: a length of 1.002 is 1 in bfloat16
    return out if weight.magnitude is None else (out * weight.magnitude).astype(out.dtype)


def _product(x: Array, weight: Weight) -> Array:
    if isinstance(weight, GroupScaled):
        return group_product(x, weight)
    if isinstance(weight, QuantisedWeight):
        return widened_linear(x, weight) if is_widened(weight) else quantised_linear(x, weight)
    return linear(x, weight)


@jax.custom_vjp
def _linear(x: Array, weight: Array) -> Array:
    return contract(x, weight, (x.ndim - 1,), (0,))


def contract(a: Array, b: Array, dims_a: tuple[int, ...], dims_b: tuple[int, ...]) -> Array:
    """Accelerators accumulate a bfloat16 product in float32 and round once; asked for a float32 result, the TPU
    compiler writes it to memory and rounds it later."""
    return jax.lax.dot_general(a, b, ((dims_a, dims_b), ((), ())), preferred_element_type=a.dtype)


def _linear_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return _linear(x, weight), (x, weight)


def _linear_gradient(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, weight = saved
    rows = tuple(range(x.ndim - 1))
    grad_x = contract(grad, weight, (x.ndim - 1,), (1,))
    return grad_x, contract(x, grad, rows, rows)


_linear.defvjp(_linear_forward, _linear_gradient)


def gated_linear(
    gate: Float[Array, "*rows F"],
    up: Float[Array, "*rows F"],
    down: Weight,
    activation: Activation,
) -> Float[Array, "*rows D"]:
    """`gated(gate, up, activation) @ down`, in `gate`'s dtype. With 8-bit products the halves get their names here."""
    if not isinstance(down, QuantisedWeight):
        return linear(gated(gate, up, activation), down)
    if has_kernels(gate, down):
        from lifecycle.kernels.quantised_gated import gated_product, has_blocks

        num_rows, (depth, width) = gate.size // gate.shape[-1], down.values.shape
        if has_blocks(num_rows, depth, width):
            rows = (x.reshape(num_rows, depth) for x in (gate, up))
            return gated_product(activation, *rows, down).reshape(*gate.shape[:-1], width)
    gate, up = (checkpoint_name(half, name) for half, name in zip((gate, up), GATES, strict=True))
    return linear(gated(gate, up, activation), down)
