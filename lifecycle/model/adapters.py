"""A bank of low-rank adapters beside a model's weights: which matrices have them, and how they are stacked and sharded.

A bank is a tree like that of the parameters with `LowRank` pairs where a matrix can be adapted: those of attention and
of feed-forwards that every token uses. Routed experts have none, nor the up-projection of latent attention, which
decoding multiplies into the queries. Adapters are in the compute dtype and sharded as the weights are: `A` by the rows
of its matrix, `B` by the columns, so that products with shards add up as the weight's do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.typing import Array, Float, Int
from lifecycle.kernels.adapted import AdaptedWeight
from lifecycle.model.config import ModelConfig
from lifecycle.model.lora import is_adapted
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import Params, in_layers, parameters

type Bank = Any  # a tree like `Params`, of `LowRank` and None
type Matrices = Mapping[str, "LowRank"]  # of one adapter, by the canonical name of the matrix: `blocks.0.attention.q`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """Of one matrix `[D, F]` the two factors of what is added to it, `a^T b`; in a bank of several adapters. DoRA's
    also has the lengths of the sum's columns."""

    a: Float[Array, "*stack rank D"]
    b: Float[Array, "*stack rank F"]
    magnitude: Float[Array, "*stack F"] | None = None


def adapted_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The matrices that adapters may change, by canonical name, with their shapes, layer by layer."""
    shapes: dict[int, dict[str, tuple[int, int]]] = {}

    def note(layers: range, name: str, declared: Parameter) -> None:
        for layer in layers:
            shapes.setdefault(layer, {})[f"blocks.{layer}.{name}"] = declared.shape[-2], declared.shape[-1]

    _of_stacks(config, note)
    return {name: shape for layer in sorted(shapes) for name, shape in shapes[layer].items()}


def bank_axes(config: ModelConfig) -> Bank:
    """A tree like a bank whose leaves are tuples of logical axis names."""

    def axes(_: range, __: str, declared: Parameter) -> LowRank:
        stack, rows, columns = declared.axes
        a: Any = (stack, None, None, rows)
        b: Any = (stack, None, None, columns)
        return LowRank(a, b)

    return _by_layer(config, _of_stacks(config, axes), lambda names, _: names[1:])


def empty_bank(config: ModelConfig, num: int, rank: int, dtype: str) -> Bank:
    """A bank of `num` adapters that change nothing."""

    def zeros(layers: range, _: str, declared: Parameter) -> LowRank:
        rows, columns = declared.shape[-2:]
        sides = (jnp.zeros((len(layers), num, rank, size), dtype) for size in (rows, columns))
        return LowRank(*sides)

    return _by_layer(config, _of_stacks(config, zeros), lambda stack, number: stack[number])


def adapter_tree(config: ModelConfig, matrices: Matrices, rank: int, dtype: Any) -> Bank:
    """One adapter as a bank of one, in host memory; smaller ranks are filled with zeros, which add nothing."""

    def side(layers: range, name: str, size: int, which: str) -> Any:
        held = np.zeros((len(layers), 1, rank, size), dtype)
        for place, layer in enumerate(layers):
            if (pair := matrices.get(f"blocks.{layer}.{name}")) is not None:
                array = getattr(pair, which)
                held[place, 0, : array.shape[0]] = array
        return held

    def pair(layers: range, name: str, declared: Parameter) -> LowRank:
        rows, columns = declared.shape[-2:]
        return LowRank(side(layers, name, rows, "a"), side(layers, name, columns, "b"))

    return _by_layer(config, _of_stacks(config, pair), lambda stack, number: stack[number])


def write_adapter(bank: Bank, adapter: Bank, place: Int[Array, ""]) -> Bank:
    """The bank with a bank of one written to a place."""

    def write(every: Array, one: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(every, one, place, every.ndim - 3)

    return jax.tree.map(write, bank, adapter)


def with_adapters(params: Params, bank: Bank, ids: Int[Array, " rows"] | None) -> Params:
    """The parameters with the bank beside them: each row of a batch has the adapter `ids` of it (`NO_ADAPTER`: none).
    Without `ids`, the parameters themselves."""
    if ids is None:
        return params

    def adapted(pair: LowRank | None, weight: Any) -> Any:
        if pair is None:
            return weight
        return AdaptedWeight(weight, pair.a, pair.b, ids)

    return jax.tree.map(adapted, bank, params, is_leaf=lambda node: node is None or isinstance(node, LowRank))


def _of_stacks(config: ModelConfig, of: Callable[[range, str, Parameter], Any]) -> Bank:
    """A bank's tree, with what `of` makes of the layers, the name within a layer and the declaration of a stack."""

    def leaf(path: Any, declared: Parameter) -> Any:
        (first, period), *keys = _keys(path)
        if not is_adapted(keys[-1], declared):
            return None
        layers = range(first, first + period * declared.shape[0], period)
        return of(layers, ".".join(keys), declared)

    tree = parameters(config.target)
    blocks = jax.tree_util.tree_map_with_path(leaf, tree["blocks"])
    return {**{name: jax.tree.map(lambda _: None, tree[name]) for name in tree}, "blocks": blocks}


def _keys(path: Any) -> tuple[Any, ...]:
    stack, *keys = (entry.key for entry in path)
    return (tuple(map(int, stack.split("+"))), *keys)


def _by_layer(config: ModelConfig, bank: Bank, part: Callable[[Any, int], Any]) -> Bank:
    """The bank, with each stack as a list of layers as the weights are."""
    return {**bank, "blocks": in_layers(config, bank["blocks"], part, lambda leaf: isinstance(leaf, tuple))}
