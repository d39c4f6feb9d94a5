"""Matrix products of 8-bit values: all three of a layer's product, its output and, in training, both gradients.

Scales come from the values themselves, in the step ("dynamic", "current"): the largest magnitude along the contracted
dimension is mapped to the largest 8-bit value, for each row of the activations and each column of the weights, as AQT
and qwix do (google/aqt, google/qwix `dot_general_qt`) and torchao's rowwise recipe for float8. There is no history to
keep in the state, as delayed scaling has (Micikevicius et al. 2022, "FP8 Formats for Deep Learning"; Transformer
Engine), so a run resumes without one. `int8`: products accumulate exactly, in int32. `fp8`: E4M3 values, and E5M2
gradients (Micikevicius et al., section 3), accumulated in float32.

The backward pass takes the forward's 8-bit values again, with no second rounding and half the memory: a scale that
lies along a contracted dimension is multiplied into the gradient before that is rounded, which is exact (qwix does the
same). On v6e the products are kernels of our own (`has_kernels`). All rounding is to nearest; MaxText's int8 rounds
gradients stochastically. docs/log.md has what nearest costs.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from lifecycle.core.platform import device_kind, platform
from lifecycle.core.typing import Array, Float, Int, Shaped
from lifecycle.kernels.weight_form import WeightForm

ROW_MAXIMUM = "row_maximum"  # the largest magnitudes of a product's rows: rematerialisation always saves them
GROUP = 32  # values that share a scale, where there is one for less than a row or column
SMALLEST = 1e-30  # of a scale's largest magnitude; its reciprocal is finite


@dataclass(frozen=True)
class Format:
    """The dtypes of a precision's values and gradients, and of their products' sums."""

    values: Any
    gradients: Any
    sums: Any


FORMATS = {
    "int8": Format(jnp.int8, jnp.int8, jnp.int32),
    "fp8": Format(jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float32),
}


def format_of(dtype: Any) -> Format:
    """The format whose values or gradients have this dtype."""
    return next(known for known in FORMATS.values() if dtype in (known.values, known.gradients))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantisedWeight(WeightForm):
    """A weight `[D, F]`, or a stack of them, as products use it: 8-bit values times a scale per column."""

    values: Shaped[Array, "*stack D F"]
    scale: Float[Array, "*stack 1 F"]
    # receives the gradient; its values are never used. None: there is none, in inference
    summed: Float[Array, "*stack D F"] | None = None
    is_cut_by_column: bool = field(default=False, metadata={"static": True})  # a mesh shards its columns


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantisedTable:
    """An embedding table or head `[V, D]` for inference: int8 values times a scale per row, or per group of one."""

    values: Shaped[Array, "V D"]
    scale: Shaped[Array, "V groups"]  # float32; bfloat16 in groups, which CPUs have

    @property
    def is_in_groups(self) -> bool:
        """Whether products are those of `kernels/group_scaled.py`."""
        return self.scale.dtype == jnp.bfloat16

    def rows(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids D"]:
        """The table's rows, in float32."""
        return scaled_rows(self.values[ids], self.scale[ids])

    def dense(self) -> Float[Array, "V D"]:
        """All of its rows."""
        return scaled_rows(self.values, self.scale)

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array has it."""
        return self.values.shape


def scaled_rows(values: Shaped[Array, "*rows D"], scale: Shaped[Array, "*rows groups"]) -> Float[Array, "*rows D"]:
    """Rows of integers times the scales of their groups, in float32."""
    return (values.reshape(*scale.shape, -1) * scale[..., None].astype(jnp.float32)).reshape(values.shape)


def is_quantised_weight(node: Any) -> bool:
    """Where a tree of weights ends."""
    return isinstance(node, QuantisedWeight)


def receivers(weights: Any) -> Any:
    """The arrays that receive the gradients of a tree of weights: all there is to differentiate."""

    def leaf(weight: Any) -> Array:
        return weight.summed if is_quantised_weight(weight) else weight

    return jax.tree.map(leaf, weights, is_leaf=is_quantised_weight)


def receiving(weights: Any, arrays: Any) -> Any:
    """The same weights, whose gradients go to these arrays; weights that are not quantised are the arrays."""

    def leaf(weight: Any, array: Array) -> Any:
        return replace(weight, summed=array) if is_quantised_weight(weight) else array

    return jax.tree.map(leaf, weights, arrays, is_leaf=is_quantised_weight)


def received(weights: Any, gradients: Any) -> Any:
    """The gradients of `receivers` as those of the weights, for a backward pass of one's own."""
    none: Any = None

    def leaf(weight: Any, gradient: Array) -> Any:
        return replace(weight, values=none, scale=none, summed=gradient) if is_quantised_weight(weight) else gradient

    return jax.tree.map(leaf, weights, gradients, is_leaf=is_quantised_weight)


def largest(x: Shaped[Array, "*dims"], dims: tuple[int, ...]) -> Float[Array, "*ones"]:
    """The largest magnitude along `dims`, which stay, with size 1. Not finite if any value is not."""
    most = jnp.abs(x.astype(jnp.float32)).max(dims, keepdims=True)
    if platform() != "cpu":
        return most
    # jaxlib 0.12.0.1's maximum of 256 and more values drops a NaN, which 8 bits would make a zero
    return jnp.where(jnp.isnan(x).any(dims, keepdims=True), jnp.nan, most)


def rounded(x: Shaped[Array, "*dims"], most: Float[Array, "*ones"], dtype: Any) -> tuple[Array, Array]:
    """(`x / scale` in an 8-bit dtype, the scale): `most` becomes the dtype's largest value.

    The scale of values that are not finite is not finite either, and so is every product with it.
    """
    most = jnp.where(most < SMALLEST, 1.0, most)  # not `max`, which may drop a NaN
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    top = float(jnp.iinfo(dtype).max if is_integer else jnp.finfo(dtype).max)
    scaled = x.astype(jnp.float32) * (top / most)
    return (jnp.round(scaled) if is_integer else scaled).astype(dtype), most / top


def quantise(x: Shaped[Array, "*dims"], dims: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """`rounded` with a scale for all values along `dims`."""
    return rounded(x, largest(x, dims), dtype)


@jax.custom_vjp
def quantised_linear(x: Float[Array, "*rows D"], weight: QuantisedWeight) -> Float[Array, "*rows F"]:
    """`x` times the weight, of 8-bit values; in `x`'s dtype."""
    return _forward(x, weight)[0]


def _forward(x: Array, weight: QuantisedWeight) -> tuple[Array, tuple[Any, ...]]:
    most = checkpoint_name(largest(x, (x.ndim - 1,))[..., 0], ROW_MAXIMUM)
    values, scale = rounded(x, most[..., None], weight.values.dtype)
    values = _row_major(values)
    out = _contract(values, weight.values, (x.ndim - 1,), (0,)) * scale * weight.scale[0]
    return out.astype(x.dtype), (values, scale, replace(weight, summed=None))


def _backward(saved: tuple[Any, ...], grad: Array) -> tuple[Array, QuantisedWeight]:
    x, x_scale, weight = saved
    dtype = format_of(weight.values.dtype).gradients
    last, rows = (grad.ndim - 1,), tuple(range(grad.ndim - 1))
    wide = grad.astype(jnp.float32)
    by_row, row_scale = quantise(wide * weight.scale[0], last, dtype)
    grad_x = _contract(by_row, weight.values, last, (1,)) * row_scale
    by_column, column_scale = quantise(wide * x_scale, rows, dtype)
    summed = _over_rows(x, by_column, weight.is_cut_by_column) * column_scale.reshape(-1)
    return grad_x.astype(grad.dtype), received(weight, summed.astype(grad.dtype))


quantised_linear.defvjp(_forward, _backward)


def is_widened(weight: "QuantisedWeight | QuantisedTable") -> bool:
    """Whether a product widens the weight instead of rounding the rows to 8 bits: in inference on TPUs. A decode step
    waits for its weights, which the product's fusion widens as it reads them; rounding took 17 % of its cycles."""
    return platform() == "tpu" and (isinstance(weight, QuantisedTable) or weight.summed is None)


def widened_linear(x: Float[Array, "*rows D"], weight: QuantisedWeight) -> Float[Array, "*rows F"]:
    """`x` times the weight, whose values are widened to `x`'s dtype; in `x`'s dtype."""
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    out = jax.lax.dot_general(x, weight.values.astype(x.dtype), dims, preferred_element_type=jnp.float32)
    return (out * weight.scale[0]).astype(x.dtype)


def table_product(x: Float[Array, "*rows D"], table: QuantisedTable) -> Float[Array, "*rows V"]:
    """Logits in float32: `x`, rounded to 8 bits by row where inference does that, times the rows of a table with a
    scale for each."""
    if is_widened(table):
        dims = (((x.ndim - 1,), (1,)), ((), ()))
        out = jax.lax.dot_general(x, table.values.astype(x.dtype), dims, preferred_element_type=jnp.float32)
        return out * table.scale[:, 0]
    values, scale = quantise(x, (x.ndim - 1,), table.values.dtype)
    return _contract(values, table.values, (x.ndim - 1,), (1,)) * scale * table.scale[:, 0]


def has_kernels(x: Float[Array, "*rows D"], weight: QuantisedWeight) -> bool:
    """Whether the three products are those of `kernels/quantised_product.py`: on v6e, whose XLA products take longer in
    8 bits, with the passes that round for them, than in bfloat16; for sizes that are multiples of the blocks."""
    if is_widened(weight):
        return False
    if device_kind() != "TPU v6 lite" or x.dtype != jnp.bfloat16 or weight.values.dtype != jnp.int8:
        return False
    from lifecycle.kernels.quantised_product import has_blocks

    return has_blocks(x.size // x.shape[-1], *weight.values.shape)


def _over_rows(x: Shaped[Array, "*rows D"], grad: Shaped[Array, "*rows F"], is_cut_by_column: bool) -> Array:
    """The sum over the rows of the products of 8-bit values, `[D, F]`.

    Gradients are scattered along their major dimension. So of a matrix whose columns are sharded the TPU compiler
    computes the transposed sum, whatever is written: then `grad` is the left operand, the one that must be transposed.
    It was 11,008 x 4,096 with 4,096 rows in 2.87 M cycles on a v5e, instead of 1.44.
    """
    x, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    if is_cut_by_column:
        return _contract(_transposed(_row_major(grad)), x, (1,), (0,)).T
    return _contract(_transposed(x), grad, (1,), (0,))


def _transposed(x: Shaped[Array, "N D"]) -> Shaped[Array, "D N"]:
    """The transposed matrix; on v5e and v5p also in memory. A transposed operand of 8 bits is multiplied at bfloat16's
    rate there: 8192 x 4096 x 14336 on a v5e in 7.4 M cycles, where the plain product takes 3.7 and the transposition
    0.8. On v6e both take the same cycles."""
    return _row_major(x.T)


def _row_major(x: Shaped[Array, "*dims"]) -> Shaped[Array, "*dims"]:
    """On v5e and v5p, keeps the last dimension along the lanes: for one transposed use the compiler would transpose the
    values for all uses, and multiply slowly in the others."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if device_kind().startswith("TPU v5") else x


def _contract(a: Array, b: Array, dims_a: tuple[int, ...], dims_b: tuple[int, ...]) -> Array:
    """The product of 8-bit values, summed as their format says, in float32."""
    sums = format_of(b.dtype).sums
    out = jax.lax.dot_general(a, b, ((dims_a, dims_b), ((), ())), preferred_element_type=sums)
    return out.astype(jnp.float32)
