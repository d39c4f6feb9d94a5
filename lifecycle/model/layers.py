"""The decoder's layers, as the papers write them.

Weights are stored `[in, out]`, the heads flattened into one dimension. A layer knows logical axes, never a mesh: on a
mesh its weights arrive gathered in `d_model` and sharded over the heads or `d_ff` of this device, so the number of
heads is read from the weights. `all_gather` and `reduce_scatter` over `norm_seq` convert between the positions that a
device normalises and those that its heads see (Korthikanti et al. 2022, section 4.2.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Bool, Float, Shaped
from lifecycle.kernels.activation import GATES, Activation
from lifecycle.kernels.attention import attention
from lifecycle.kernels.linear import Weight, gated_linear, linear, linears
from lifecycle.kernels.mask import Mask
from lifecycle.kernels.norm import mean_squares, mean_squares_apart, rms_norm
from lifecycle.kernels.normed_linear import normed_linear
from lifecycle.kernels.quantised import QuantisedWeight
from lifecycle.kernels.ring import ring_attention
from lifecycle.kernels.rotary import rotate
from lifecycle.model.cache import Attending
from lifecycle.model.config import ModelConfig, RematName
from lifecycle.model.parameter import matrix, vector
from lifecycle.model.remat import MEAN_SQUARE
from lifecycle.parallel.collectives import all_gather, axis_index, axis_size, own_shard, psum, reduce_scatter


def branch_scale(config: ModelConfig) -> float:
    """The scale of a branch's last weight, which keeps the size of the sum of all branches independent of the depth."""
    return (2 * config.num_layers) ** -0.5


class RMSNorm(nnx.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019), computed in float32.

    `cut`: the logical axis over which the normalised dimension is sharded on a mesh, if it is. Of hidden states that
    are cut all devices have the whole scale. The mean squares are kept for the backward pass under any remat policy: a
    number per row, and on a TPU summing over the lanes again costs several times the pass over memory.
    """

    def __init__(self, size: int, config: ModelConfig, cut: str | None = None) -> None:
        self.scale = vector((size,), (None if cut == "hidden" else cut,), 1.0 - config.norm_offset, is_float32=True)
        self.eps, self.offset, self.cut = config.norm_eps, config.norm_offset, cut

    def __call__(
        self, x: Float[Array, "*rows D"], mean_square: Float[Array, "*rows"] | None = None
    ) -> Float[Array, "*rows D"]:
        """Normalises the last dimension; the result has `x`'s dtype. `mean_square` of the rows, if it is known."""
        if mean_square is None:
            mean_square = checkpoint_name(mean_squares(x, self.cut), MEAN_SQUARE)
        return rms_norm(x, mean_square, self._scale(), self.eps, self.cut)

    def products(
        self,
        x: Float[Array, "B t D"],
        mean_square: Float[Array, "B t"] | None,
        weights: Mapping[str, Float[Array, "D F"]],
        is_before_kernel: bool,
    ) -> tuple[Array, ...]:
        """`x`, and the products of its normalised rows with weights, by the products' names (`normed_linear`)."""
        if mean_square is None:
            mean_square = checkpoint_name(mean_squares_apart(x), MEAN_SQUARE)
        matrices, names = tuple(weights.values()), tuple(weights)
        return normed_linear(x, mean_square, self._scale(), matrices, self.eps, names, is_before_kernel)

    def _scale(self) -> Float[Array, " D"]:
        scale = own_shard(self.scale[...], "hidden", 0) if self.cut == "hidden" else self.scale[...]
        return scale + self.offset if self.offset else scale


def hidden_norm(config: ModelConfig) -> RMSNorm:
    """A norm of hidden states."""
    return RMSNorm(config.d_model, config, "hidden")


@dataclass(frozen=True)
class Normed:
    """A branch's input: rows, and the norm before the branch, if the model has one there."""

    x: Float[Array, "B t D"]
    norm: RMSNorm | None
    mean_square: Float[Array, "B t"] | None = None  # of `x`'s rows, if it is known

    def rows(self) -> Float[Array, "B t D"]:
        """The normalised rows."""
        return self.x if self.norm is None else self.norm(self.x, self.mean_square)

    def products(self, weights: Mapping[RematName, Weight], is_before_kernel: bool = False) -> tuple[Array, ...]:
        """The rows before the norm, for the sum with the branch's output; then the normalised ones, gathered over
        `norm_seq`, times each weight, by the products' names for rematerialisation; partial sums over `hidden`.

        On TPUs one gradient covers norm and products. Elsewhere products are not fused with what comes after them, and
        that gradient's sums over the products would be another pass. `is_before_kernel`: see `normed_linear`.
        """
        plain: dict[str, Array] = {name: w for name, w in weights.items() if isinstance(w, jax.Array)}
        is_cut = axis_size("hidden") > 1  # never in training
        if platform() == "tpu" and self.norm is not None and len(plain) == len(weights) and not is_cut:
            return self.norm.products(self.x, self.mean_square, plain, is_before_kernel)
        return self.x, *_products(all_gather(self.rows(), "norm_seq", 1), weights)


def _products(rows: Float[Array, "B T D"], weights: Mapping[RematName, Weight]) -> tuple[Float[Array, "B T F"], ...]:
    outs = zip(weights.items(), linears(rows, tuple(weights.values())), strict=True)
    # the halves of a gated unit in 8 bits are named by `gated_linear`, which may have to use them without a name
    return tuple(
        out if name in GATES and isinstance(weight, QuantisedWeight) else checkpoint_name(out, name)
        for (name, weight), out in outs
    )


class Hidden(NamedTuple):
    """Hidden states with the mean squares of their rows, which the layer that makes the rows sums for the next norm;
    `None` if layers do not begin with a norm."""

    x: Float[Array, "B T D"]
    mean_square: Float[Array, "B T"] | None


def for_layer(config: ModelConfig, x: Float[Array, "B T D"]) -> Hidden:
    """Hidden states for a layer, or for the final norm."""
    return Hidden(x, None if config.norm_position == "post" else mean_squares(x, "hidden"))


type Angles = Float[Array, "2 B T 1 Dr"]  # cosines and sines of RoPE's angles, as `rotary_angles` gives them


def apply_rope(x: Float[Array, "B T H Dh"], angles: Angles | None) -> Float[Array, "B T H Dh"]:
    """`x` rotated to its positions; unchanged in a layer without RoPE."""
    return x if angles is None else rotate(x, angles)


def is_token(mask: Mask) -> Bool[Array, "B t"] | None:
    """Which of this device's positions hold a token: segment 0 is padding. None: all."""
    segments = mask.query_segments
    if segments is None:
        return None
    size = segments.shape[1] // axis_size("norm_seq")
    return jax.lax.dynamic_slice_in_dim(segments, axis_index("norm_seq") * size, size, axis=1) != 0


class Attention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023) with RoPE and the families' options."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, width: int | None = None) -> None:
        """`width`: of the input, if not `d_model`."""
        c = self.config = config
        queries, keys, width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, width or c.d_model
        self.q = matrix(rngs, (width, queries), ("embed", "heads"))
        self.k = matrix(rngs, (width, keys), ("embed", "kv_heads"))
        self.v = matrix(rngs, (width, keys), ("embed", "kv_heads"))
        self.o = matrix(rngs, (queries, c.d_model), ("heads", "embed"), branch_scale(c))
        has_bias = c.attention_bias != "none"
        self.q_bias = vector((queries,), ("heads",)) if has_bias else None
        self.k_bias = vector((keys,), ("kv_heads",)) if has_bias else None
        self.v_bias = vector((keys,), ("kv_heads",)) if has_bias else None
        self.o_bias = vector((c.d_model,), (None,)) if c.attention_bias == "qkvo" else None
        self.sinks = vector((c.num_heads,), ("heads",), is_float32=True) if c.use_sinks else None
        self.q_norm = _head_norm(c, queries, "heads")
        self.k_norm = _head_norm(c, keys, "kv_heads")

    def __call__[C: Attending | None](
        self, x: Normed, angles: Angles | None, mask: Mask, cache: C
    ) -> tuple[Float[Array, "B t columns"], Float[Array, "B t D"], C]:
        """The branch's input and its output for this device's `t` positions, and the cache with the new tokens."""
        c = self.config
        # named right after the products: rounding the saved values is free there, and recomputing the rest is cheap
        rows, *parts = x.products({"q": self.q[...], "k": self.k[...], "v": self.v[...]}, is_before_kernel=True)
        q, k, v = (reduce_scatter(part, "hidden", 1) for part in parts)
        q = apply_rope(self._heads(q, self.q_bias, self.q_norm), angles)
        k = apply_rope(self._heads(k, self.k_bias, self.k_norm), angles)
        v = self._heads(v, self.v_bias, None)
        sinks = self.sinks[...] if self.sinks is not None else None
        options = {"scale": c.attention_scale, "soft_cap": c.attention_soft_cap, "sinks": sinks}
        if cache is not None:
            out, cache = cache.attend(q, k, v, **options)  # pyrefly: ignore[missing-attribute] - it is not None
        elif c.context_attention == "ring" and axis_size("seq") > 1:
            # a device's keys are at its queries' positions
            own = replace(mask, key_positions=mask.query_positions, key_segments=mask.query_segments)
            out = ring_attention(q, k, v, own, **options)
        else:
            out = attention(q, full_row(k), full_row(v), mask, **options)
        out = linear(all_gather(out.reshape(*out.shape[:2], -1), "hidden", 1), self.o[...])
        out = reduce_scatter(out, "norm_seq", 1)
        if self.o_bias is not None:
            out += own_shard(self.o_bias[...], "hidden", 0).astype(out.dtype)
        return rows, out, cache

    def _heads(self, x: Array, bias: nnx.Param | None, norm: RMSNorm | None) -> Float[Array, "B T H Dh"]:
        if bias is not None:
            x = x + bias[...].astype(x.dtype)
        shape = (*x.shape[:2], -1, self.config.head_dim)
        if norm is None:
            return x.reshape(shape)
        return norm(x).reshape(shape) if norm.cut is not None else norm(x.reshape(shape))


def _head_norm(config: ModelConfig, width: int, cut: str) -> RMSNorm | None:
    """The norm of queries or keys: per head, or over all heads' `width` dimensions, which a mesh shards."""
    if config.qk_norm == "none":
        return None
    return RMSNorm(config.head_dim, config) if config.qk_norm == "head" else RMSNorm(width, config, cut)


def full_row(x: Shaped[Array, "B T *dims"]) -> Shaped[Array, "B S *dims"]:
    """A row's values at all positions, in plain order, from this device's shard in the order of `row_order`."""
    num_shards = axis_size("seq")
    if num_shards == 1:
        return x
    x = all_gather(x, "seq", 1)
    # device i holds chunks i and 2n - 1 - i of 2n: restore the plain order
    chunks = x.reshape(x.shape[0], 2 * num_shards, -1, *x.shape[2:])
    order = [2 * i if i < num_shards else 2 * (2 * num_shards - 1 - i) + 1 for i in range(2 * num_shards)]
    return jnp.concatenate([chunks[:, chunk] for chunk in order], axis=1)


class GatedUnit(nnx.Module):
    """The weights of a gated linear unit (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, d_ff: int | None = None) -> None:
        c, d_ff = config, d_ff or config.d_ff
        self.activation: Activation = c.activation
        self.gate = matrix(rngs, (c.d_model, d_ff), ("embed", "mlp"))
        self.up = matrix(rngs, (c.d_model, d_ff), ("embed", "mlp"))
        self.down = matrix(rngs, (d_ff, c.d_model), ("mlp", "embed"), branch_scale(c))

    def _weights(self) -> dict[RematName, Weight]:
        return {"gate": self.gate[...], "up": self.up[...]}

    def _out(self, gate: Array, up: Array) -> Float[Array, "B T D"]:
        return gated_linear(gate, up, self.down[...], self.activation)


class FeedForward(GatedUnit):
    """The feed-forward of experts that every token uses."""

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """`x` is gathered over `norm_seq`; the result is a partial sum over `mlp`."""
        return self._out(*(psum(part, "hidden") for part in _products(x, self._weights())))


class DenseFeedForward(GatedUnit):
    """The feed-forward of a layer without experts."""

    def __call__(self, x: Normed) -> tuple[Float[Array, "B t D"], Float[Array, "B t D"]]:
        """The branch's input and its output; positions are sharded over `norm_seq` in and out."""
        rows, *parts = x.products(self._weights())
        gate, up = (psum(part, "hidden") for part in parts)
        return rows, reduce_scatter(self._out(gate, up), "norm_seq", 1)
