"""NF4 by an independent computation from the papers, by bitsandbytes, and what holds for any weight."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from lifecycle.kernels.nf4 import BLOCK, VALUES, Nf4Weight, columns_per_group, dense, dynamic_map, quantised

GOLDEN = Path(__file__).parents[1] / "golden/nf4.npz"
OFFSET = 0.9677083  # of the outermost quantile, QLoRA's published code


def test_the_values_are_the_quantiles_of_a_normal_distribution() -> None:
    """Eight quantiles above zero, seven below, and zero; divided by the largest."""
    above, below = (norm.ppf(np.linspace(OFFSET, 0.5, num)[:-1]) for num in (9, 8))
    expected = np.sort([*above, 0.0, *-below]) / above.max()
    np.testing.assert_allclose(VALUES, expected, atol=2e-7)
    assert VALUES[7] == 0 and (VALUES[0], VALUES[15]) == (-1, 1)


def test_the_dynamic_map_has_powers_of_ten_and_their_parts() -> None:
    """A number's leading zeros are the power of ten, the bits behind the one the part of it (Dettmers 2016)."""
    expected = [0.0, 1.0]
    for number in range(1, 128):
        bits = number.bit_length() - 1
        part = (number - 2**bits + 0.5) / 2**bits
        expected += [sign * 10.0 ** (bits - 6) * (0.1 + 0.9 * part) for sign in (1, -1)]
    assert len(set(dynamic_map().tolist())) == 256
    np.testing.assert_allclose(dynamic_map(), np.sort(expected), rtol=1e-6)


def by_hand(weight: np.ndarray) -> np.ndarray:
    """A weight rounded block by block in float64."""
    rows, columns = weight.shape
    size, table = columns_per_group(columns), dynamic_map().astype(np.float64)
    out = np.zeros(weight.shape)
    for first in range(0, rows, BLOCK):
        block = weight[first : first + BLOCK].astype(np.float64)
        most = np.abs(block).max(0)
        shares = block / np.where(most > 0, most, 1)
        values = np.asarray(VALUES)[np.abs(shares[..., None] - np.asarray(VALUES)).argmin(-1)]
        for group in range(0, columns, size):
            part = most[group : group + size]
            apart = part - part.mean()
            span = np.abs(apart).max() or 1.0
            held = table[np.abs((apart / span)[:, None] - table).argmin(-1)] * np.abs(apart).max() + part.mean()
            out[first : first + BLOCK, group : group + size] = values[:, group : group + size] * held
    return out


@pytest.mark.parametrize("shape", [(64, 96), (192, 512)])
def test_a_weight_is_rounded_as_by_hand(shape: tuple[int, int]) -> None:
    draws = np.random.default_rng(0)
    weight = draws.standard_normal(shape, np.float32) * draws.uniform(0.01, 3, shape[1]).astype(np.float32)
    weight[:64, 3] = 0
    found = np.asarray(jax.jit(lambda w: dense(quantised(w)))(weight))
    expected = by_hand(weight)
    is_same = np.isclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(weight).max())
    assert is_same.mean() > 0.999  # a value, or a scale, halfway between two is rounded either way
    assert np.abs(found - weight).mean() < 0.08 * np.abs(weight).mean() * 1.5
    assert not found[:64, 3].any()


@settings(max_examples=25, deadline=None)
@given(st.integers(-120, 120), st.integers(0, 2**31), st.booleans())
def test_each_value_is_near_and_finite(power: int, seed: int, is_sparse: bool) -> None:
    """Off by half of the widest gap between two values, and by a scale's rounding, of the block's largest."""
    draws = np.random.default_rng(seed)
    weight = np.ldexp(draws.standard_normal((64, 32)), power).astype(np.float32)
    weight *= draws.random(weight.shape) < 0.1 if is_sparse else 1
    found = np.asarray(ROUNDED(weight))
    most = np.abs(weight).max(0)
    assert np.isfinite(found).all()
    assert (np.abs(found - weight) <= 0.16 * most + 0.01 * most.max()).all()


ROUNDED = jax.jit(lambda w: dense(quantised(w)))


@pytest.mark.slow
def test_shards_of_whole_blocks_are_those_of_the_weight() -> None:
    weight = np.random.default_rng(1).standard_normal((2, 256, 512), np.float32)
    whole = jax.jit(quantised)(weight)
    expected = dense(whole)
    rows = jax.jit(quantised)(weight[:, 128:])
    for name, part in vars(rows).items():
        assert np.array_equal(part, getattr(whole, name)[:, -part.shape[1] :]), name
    for shard in range(4):
        own = slice(128 * shard, 128 * shard + 128)
        held = Nf4Weight(whole.codes[..., own], whole.scales[..., own], whole.spans, whole.means)
        assert np.array_equal(dense(held, jnp.int32(shard), 4), expected[..., own])
    bits = 8 * sum(part.nbytes for part in vars(whole).values()) / weight.size
    assert bits == 4 + 8 / 64 + 64 / (64 * 256)


def test_codes_and_scales_are_those_of_bitsandbytes() -> None:
    """Of scales, all but a few: what is within 1e-6 of halfway between two numbers it rounds either way."""
    golden = np.load(GOLDEN)
    weight = jnp.asarray((golden["numbers"] * golden["factors"]).T)
    assert columns_per_group(weight.shape[1]) == weight.shape[1]  # one mean and one span of all scales, as it has
    found = jax.jit(quantised)(weight)
    np.testing.assert_array_equal(np.concatenate([found.codes & 15, found.codes >> 4]), golden["codes"].T)
    scales, expected = dynamic_map()[np.asarray(found.scales)] * found.spans + found.means, golden["scales"].T
    is_same = np.isclose(scales, expected, rtol=1e-5, atol=1e-6)
    assert is_same.mean() > 0.98
    np.testing.assert_allclose(scales, expected, atol=0.0157 * float(found.spans[0, 0]))  # the map's widest gap
    whole = np.asarray(VALUES)[golden["codes"]].T * expected
    np.testing.assert_allclose(np.asarray(dense(found))[:, is_same[0]], whole[:, is_same[0]], rtol=1e-5, atol=1e-6)
