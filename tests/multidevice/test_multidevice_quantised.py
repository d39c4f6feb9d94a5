"""Weights quantised by shard, and parameters rounded stochastically: the same bits on any mesh."""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array
from lifecycle.model.parameter import Parameter
from lifecycle.model.quantised import quantised_weight
from lifecycle.model.weight_formats import leaf_as_served
from lifecycle.parallel.collectives import all_gather
from lifecycle.parallel.mesh import make_mesh, sharding, spec
from lifecycle.training.rounding import rounded_like

EMBED, MLP = "embed", "mlp"


def test_a_weight_is_quantised_before_it_is_gathered_with_the_bits_of_the_full_one() -> None:
    mesh = make_mesh(fsdp=4, tensor=2)
    weight = jax.random.normal(jax.random.key(0), (16, 24))
    weight = weight.at[3].mul(9.0)  # the largest of every column is in one device's rows

    def both(up: Array, down: Array) -> tuple[tuple[Array, Array, Array], ...]:
        """Values, scales and gradients of a matrix whose rows, and of one whose columns, are gathered."""
        out = []
        for axes, shard in (((EMBED, None), up), ((None, EMBED), down)):
            held, pull = jax.vjp(lambda shard, axes=axes: quantised_weight(axes, "int8", "float32", shard), shard)
            grad = jnp.cos(held.scale * jnp.arange(held.summed.shape[0])[:, None])
            none = np.zeros(held.values.shape, jax.dtypes.float0)
            (found,) = pull(replace(held, values=none, scale=jnp.zeros_like(held.scale), summed=grad))
            dim = 0 if axes[0] else 1
            assert held.is_cut_by_column == bool(dim)
            (plain,) = jax.vjp(lambda shard, dim=dim: all_gather(shard, EMBED, dim), shard)[1](grad)
            out.append((held.values, held.scale, found - plain))
        return tuple(out)

    full = (P(None, "tensor"), P(None, "tensor")), (P("tensor"), P("tensor"))
    specs = tuple(
        (values, scales, own) for (values, scales), own in zip(full, (spec(EMBED, MLP), spec(MLP, EMBED)), strict=True)
    )
    on_mesh = jax.shard_map(
        both, mesh=mesh, in_specs=(spec(EMBED, MLP), spec(MLP, EMBED)), out_specs=specs, check_vma=False
    )
    text = jax.jit(on_mesh).lower(weight, weight.T).as_text()
    assert text.count("stablehlo.all_gather") and "xi8>" in text.partition("stablehlo.all_gather")[2].partition("\n")[0]
    (up, up_scale, up_error), (down, down_scale, down_error) = jax.jit(on_mesh)(weight, weight.T)

    def alone(shard: Array) -> tuple[Array, Array]:
        held = quantised_weight((None, None), "int8", "float32", shard)
        return held.values, held.scale

    values, scale = alone(weight)
    np.testing.assert_array_equal(up, values)
    np.testing.assert_array_equal(up_scale, scale)
    halves = [alone(half) for half in jnp.split(weight.T, 2)]  # each `tensor` device sums over its own rows
    np.testing.assert_array_equal(down, jnp.concatenate([values for values, _ in halves]))
    np.testing.assert_array_equal(down_scale, jnp.concatenate([scale for _, scale in halves]))
    assert not np.asarray(up_error).any() and not np.asarray(down_error).any()


@pytest.mark.parametrize(("rows", "exchanges"), [(256, False), (64, True)])
def test_rounding_whole_weights_moves_none_of_them(rows: int, exchanges: bool) -> None:
    """Of 256 rows each of four devices has two groups of 32. Of 64 it has half of one: the two that share a group tell
    each other a number for each of its columns, and no weights."""
    mesh, declared = make_mesh(fsdp=4, tensor=2), Parameter((rows, 64), (EMBED, MLP), is_matrix=True, fan_in=-2)
    weight = jax.ShapeDtypeStruct((rows, 64), jnp.float32, sharding=sharding(mesh, EMBED, MLP))
    found = leaf_as_served.lower(declared, weight, "int4", np.dtype(np.float32)).compile().as_text() or ""
    moved = re.findall(r"= \w+\[([\d,]+)\]\S* (?:all-gather|all-to-all|collective-permute|reduce-scatter)\(", found)
    assert bool(moved) == exchanges
    assert all(math.prod(map(int, shape.split(","))) <= 2 * 64 for shape in moved), moved


def test_stochastic_rounding_gives_the_same_bits_on_any_mesh() -> None:
    wide = {"w": jax.random.normal(jax.random.key(1), (16, 64))}
    held = {"w": wide["w"].astype(jnp.bfloat16)}
    found = []
    for mesh in (make_mesh(), make_mesh(fsdp=8), make_mesh(fsdp=2, tensor=4)):
        at = {"w": sharding(mesh, EMBED, MLP)}
        placed = (jax.device_put(held, at), jax.device_put(wide, at))
        found.append(np.asarray(jax.jit(rounded_like, out_shardings=at)(*placed, jnp.int32(5))["w"]))
    assert all(np.array_equal(found[0], other) for other in found[1:])
