"""Mixture of experts: each token uses a few of a layer's experts (Shazeer et al. 2017; Fedus et al. 2021).

Each token's rows are sorted by expert, sent to the experts' devices, multiplied group by group, sent back and summed
(`model/dispatch.py`, `kernels/grouped.py`). No token is ever dropped, and the products process existing rows only. A
row's weight multiplies the hidden activations, before the last product, so the gradient of a weight needs neither that
product nor the second exchange again when activations are recomputed.

On a mesh, experts are sharded over `expert`, and each expert's `d_ff` over `tensor`, whose devices see all positions.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.kernels.activation import Activation
from lifecycle.kernels.gated_product import weighted_down
from lifecycle.kernels.grouped import group_ids
from lifecycle.kernels.grouped_linear import GroupWeights, grouped_matmul
from lifecycle.kernels.linear import linear
from lifecycle.kernels.quantised import received, receivers, receiving
from lifecycle.kernels.seldom import seldom
from lifecycle.model.config import ModelConfig
from lifecycle.model.cut_hidden import to_columns, to_rows
from lifecycle.model.dispatch import (
    Room,
    all_counts,
    buffer_room,
    expert_order,
    from_buffer,
    further_rounds,
    round_slices,
    tiled,
    to_buffer,
    to_experts,
    to_tokens,
)
from lifecycle.model.few_rows import by_all_experts, is_few
from lifecycle.model.layers import FeedForward, branch_scale
from lifecycle.model.parameter import matrix, vector
from lifecycle.model.routing import RouterStats, expert_load, route, router_logits, router_stats
from lifecycle.parallel.collectives import all_gather, axis_index, axis_size, psum_identity_grad, reduce_scatter

# gate, up [X, D, Fe]; down [X, Fe, D]; gate_bias, up_bias [X, Fe]; X experts here
type Weights = Mapping[str, GroupWeights]


class Experts(nnx.Module):
    """The weights of a layer's experts, stacked."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        moe = config.moe
        assert moe is not None
        num, d_model, d_ff = moe.num_experts, config.d_model, moe.d_ff
        self.gate = matrix(rngs, (num, d_model, d_ff), ("experts", "expert_embed", "mlp"))
        self.up = matrix(rngs, (num, d_model, d_ff), ("experts", "expert_embed", "mlp"))
        self.down = matrix(rngs, (num, d_ff, d_model), ("experts", "mlp", "expert_embed"), branch_scale(config))
        self.gate_bias = vector((num, d_ff), ("experts", "mlp")) if moe.use_bias else None
        self.up_bias = vector((num, d_ff), ("experts", "mlp")) if moe.use_bias else None
        self.down_bias = vector((num, d_model), ("experts", None)) if moe.use_bias else None

    def weights(self) -> Weights:
        """The weights of the rows' products; the last bias is added to the sum of a token's rows instead."""
        params = {"gate": self.gate, "up": self.up, "down": self.down}
        if self.gate_bias is not None and self.up_bias is not None:
            params |= {"gate_bias": self.gate_bias, "up_bias": self.up_bias}
        return {name: param[...] for name, param in params.items()}


class MoE(nnx.Module):
    """Router, routed experts and shared experts."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        moe = self.moe = config.moe
        assert moe is not None
        self.activation: Activation = config.activation
        num = moe.num_experts
        self.router = matrix(rngs, (config.d_model, num), ("embed", None), is_float32=True)
        self.router_bias = vector((num,), (None,), is_float32=True) if moe.use_bias else None
        self.selection_bias = vector((num,), (None,), is_float32=True) if moe.use_selection_bias else None
        self.experts = Experts(config, rngs)
        shared_d_ff = moe.num_shared_experts * moe.d_ff
        self.shared = FeedForward(config, rngs, shared_d_ff) if shared_d_ff else None

    def __call__(
        self, x: Float[Array, "B T D"], is_token: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], RouterStats]:
        """The layer's output, and its router's statistics over this device's rows and positions (replicated over
        `tensor`).

        Padding, outside `is_token`, goes to no expert and is not counted; its output is that of the shared experts
        only.
        """
        assert self.moe is not None
        logits = router_logits(x.reshape(-1, x.shape[-1]), self.router[...], _value(self.router_bias))
        present = jnp.ones((x.shape[0], logits.shape[0] // x.shape[0]), bool) if is_token is None else is_token
        experts, weights = route(self.moe, logits, _value(self.selection_bias))
        stats = router_stats(self.moe, logits, experts, present.reshape(-1))
        experts = jnp.where(present[..., None], experts.reshape(*present.shape, -1), self.moe.num_experts)
        weights = jnp.where(present[..., None], weights.reshape(experts.shape), 0.0)

        seen = all_gather(x, "norm_seq", 1)
        chosen = (all_gather(each, "norm_seq", 1) for each in (experts, weights))
        out, dropped = self._routed(to_rows(seen), *chosen)
        out = to_columns(out)
        if self.shared is not None:
            out += self.shared(seen)
        out = reduce_scatter(out, "norm_seq", 1)
        if self.experts.down_bias is not None:
            out += to_columns(self._last_bias(experts, weights)).astype(out.dtype)
        stats = jax.tree.map(lambda value: psum_identity_grad(value, "norm_seq"), stats)
        return out, stats._replace(dropped=dropped)

    def _routed(
        self, x: Float[Array, "B T D"], experts: Int[Array, "B T k"], weights: Float[Array, "B T k"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
        """The experts' weighted sum for each position, without the last bias, and the number of choices not
        computed."""
        assert self.moe is not None
        copies = self.moe.experts_per_token
        flat = x.reshape(-1, x.shape[-1])
        if is_few(flat.shape[0]):
            chosen = experts.reshape(-1, copies), weights.reshape(-1, copies)
            out = by_all_experts(self.activation, flat, *chosen, self.experts.weights())
            return out.reshape(x.shape), jnp.zeros(())
        order, load = expert_order(experts.reshape(-1, copies)), expert_load(experts, self.moe.num_experts)
        rows = to_experts(tiled(flat), order, copies)
        row_weights = to_experts(weights.reshape(-1), order, 1)
        if axis_size("experts") > 1:
            rows, computed = _exchanged(self.activation, copies, load, rows, row_weights, self.experts.weights())
        else:
            rows = of_experts(self.activation, rows, row_weights, self.experts.weights(), load, is_filled=True)
            computed = load.sum()
        return to_tokens(rows, order, copies).reshape(x.shape), (load.sum() - computed).astype(jnp.float32)

    def _last_bias(self, experts: Int[Array, "B T k"], weights: Float[Array, "B T k"]) -> Float[Array, "B T D"]:
        """The weighted sum of the chosen experts' last biases: a product, whose gradient needs no scatter."""
        assert self.moe is not None and self.experts.down_bias is not None
        bias = all_gather(self.experts.down_bias[...], "experts", 0)
        is_chosen = experts[..., None] == jnp.arange(self.moe.num_experts)
        return linear(jnp.where(is_chosen, weights[..., None], 0.0).sum(axis=-2).astype(bias.dtype), bias)


def _value(param: nnx.Param | None) -> Array | None:
    return None if param is None else param[...]


def of_experts(
    activation: Activation,
    rows: Float[Array, "R ..."],
    row_weights: Float[Array, " R"],
    weights: Weights,
    group_sizes: Int[Array, " X"],
    is_filled: bool,
) -> Float[Array, "R ..."]:
    """Applies each row's expert and multiplies the result by the row's weight, without the last bias. Rows after the
    last group are zero, or arbitrary unless `is_filled`. A row may have several dimensions."""
    shape, rows = rows.shape, rows.reshape(rows.shape[0], -1)
    ids, num_groups = group_ids(group_sizes, rows.shape[0]), group_sizes.shape[0]

    def product(name: str) -> Array:
        out = grouped_matmul(rows, weights[name], group_sizes, is_filled)
        if f"{name}_bias" not in weights:
            return checkpoint_name(out, name)
        out += linear(jax.nn.one_hot(ids, num_groups, dtype=rows.dtype), weights[f"{name}_bias"])
        # The bias's gradient is a product over all rows: arbitrary rows after the last group must not reach it.
        return checkpoint_name(jnp.where((ids < num_groups)[:, None], out, 0), name)

    out = weighted_down(
        activation, product("gate"), product("up"), row_weights, weights["down"], group_sizes, is_filled
    )
    return out.reshape(shape)


def _exchanged(
    activation: Activation, copies: int, load: Array, rows: Array, row_weights: Array, weights: Weights
) -> tuple[Float[Array, "R ..."], Int[Array, ""]]:
    """`of_experts` with experts on other devices: sends this device's rows and receives the results. Also returns the
    number of rows that this device has computed."""
    counts = all_counts(load)
    room = buffer_room(rows.shape[0] // copies, copies, counts.shape[2], counts.shape[0])
    received = counts[:, axis_index("experts")].sum()
    if room.most == 0:
        return _round(activation, room.first, counts, 0, rows, row_weights, weights), received
    further = further_rounds(counts, room)
    out = _rounds(activation, room, rows, row_weights, weights, counts, further)
    return out, jnp.minimum(received, room.after(further))


def _round(
    activation: Activation,
    size: int,
    counts: Array,
    low: Array | int,
    rows: Array,
    row_weights: Array,
    weights: Weights,
) -> Float[Array, "R ..."]:
    """The outputs for this device's rows among rows `low` to `low + size` of each receiver; zero for its other rows."""
    slices = round_slices(counts, low, size, axis_index("experts"))
    sent = rows.shape[0]
    here = checkpoint_name(to_buffer(rows, slices, sent, size), "expert_rows")
    here_weights = to_buffer(row_weights, slices, sent, size)
    # Rows that were not received are never fetched; filling them and their gradients took a tenth of Mixtral's cycles.
    out = of_experts(activation, here, here_weights, weights, slices.receive_sizes.sum(axis=0), is_filled=False)
    return from_buffer(out, slices, sent, size)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rounds(
    activation: Activation,
    room: Room,
    rows: Array,
    row_weights: Array,
    weights: Weights,
    counts: Array,
    further: Array,
) -> Float[Array, "R ..."]:
    """All rounds. Usually there is only the first, with an ordinary gradient. The gradient of further rounds recomputes
    them, so they save nothing and their number may depend on the data."""
    return _rounds_forward(activation, room, rows, row_weights, weights, counts, further)[0]


def _rounds_forward(
    activation: Activation,
    room: Room,
    rows: Array,
    row_weights: Array,
    weights: Weights,
    counts: Array,
    further: Array,
) -> tuple[Array, tuple[Any, ...]]:
    first, pull_first = _pulled(activation, room.first, counts, 0, (rows, row_weights, weights))

    def add(number: Array, out: Array) -> Array:
        return out + _round(activation, room.further, counts, room.after(number), rows, row_weights, weights)

    return seldom(further, add, first), (pull_first, (rows, row_weights, weights), counts, further)


def _pulled(
    activation: Activation, size: int, counts: Array, low: Array | int, inputs: tuple[Array, Array, Weights]
) -> tuple[Array, Any]:
    """A round, and the function from its gradient to those of rows, row weights and what receives the weights'."""
    rows, row_weights, weights = inputs

    def of(rows: Array, row_weights: Array, arrays: Any) -> Array:
        return _round(activation, size, counts, low, rows, row_weights, receiving(weights, arrays))

    return jax.vjp(of, rows, row_weights, receivers(weights))


def _rounds_backward(activation: Activation, room: Room, saved: tuple[Any, ...], grad: Array) -> tuple[Any, ...]:
    pull_first, inputs, counts, further = saved

    def add(number: Array, grads: Any) -> Any:
        _, pull = _pulled(activation, room.further, counts, room.after(number), inputs)
        return jax.tree.map(jnp.add, grads, pull(grad))

    *grads, of_weights = seldom(further, add, pull_first(grad))
    return (*grads, received(inputs[2], of_weights), None, None)


_rounds.defvjp(_rounds_forward, _rounds_backward)
