"""The CPU kernel of single queries and pages: against the definition, and blind to all that a query does not see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.typing import Array
from lifecycle.kernels.attention import reference_attention
from lifecycle.kernels.cpu_kernels import has_kernel
from lifecycle.kernels.mask import Mask
from lifecycle.kernels.page_store import Entry, PageStore
from lifecycle.kernels.paged import paged_attention
from lifecycle.kernels.paged_rows import Rows

ROWS, PER_ROW, PAGE, GROUPS, HEADS = 3, 3, 32, 2, 6
LENGTH = PER_ROW * PAGE
CLOSE = 2e-6


@pytest.fixture(autouse=True)
def needs_the_kernel() -> None:
    if not has_kernel("paged_cpu"):
        pytest.skip("this processor has no AVX-512")


def draw(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@partial(jax.jit, static_argnames=("window", "scale"))
def by_pages(q: Array, values: Array, table: Array, positions: Array, window: int | None, scale: float) -> Array:
    rows = Rows.of(positions, table, LENGTH, PAGE, window)
    return paged_attention(q, PageStore(values, None, Entry.key_value(q.shape[-1], q.shape[-1])), 0, rows, scale=scale)


def attend(
    newest: list[int], width: int = 80, window: int | None = None, seed: int = 0, scale: float = 0.2, spare: int = 3
) -> tuple[Array, Array]:
    """From the newest position of each row, by the kernel from pages whose unseen positions are NaN; and by the
    definition."""
    q = draw(ROWS, 1, HEADS, width, seed=1)
    k, v = (draw(ROWS, LENGTH, GROUPS, width, seed=which) for which in (2, 3))
    ends = np.array(newest)[:, None]
    here = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
    is_seen = (here <= ends) & (here > ends - (window or LENGTH))
    table = np.random.default_rng(seed).permutation(ROWS * PER_ROW + spare)[: ROWS * PER_ROW].reshape(ROWS, PER_ROW)
    values = np.full((1, ROWS * PER_ROW + spare, 2, GROUPS, PAGE, width), np.nan, np.float32)
    for which, array in enumerate((k, v)):
        known = np.where(is_seen[:, :, None, None], array, np.nan)
        values[0, table, which] = known.reshape(ROWS, PER_ROW, PAGE, GROUPS, width).swapaxes(2, 3)
    positions = np.where(ends < 0, LENGTH, ends)
    found = by_pages(q, values, table, positions, window, scale)
    q, k, v = (jnp.asarray(x) for x in (q, k, v))
    return found, reference_attention(
        q, k, v, Mask(jnp.asarray(positions), jnp.asarray(here), window=window), scale=scale
    )


@settings(max_examples=12)
@given(newest=st.lists(st.integers(-1, LENGTH - 1), min_size=ROWS, max_size=ROWS), seed=st.integers(0, 9))
@pytest.mark.parametrize(("width", "window"), [(16, None), (64, 40), (80, 1)])
def test_the_kernel_gives_what_the_definition_gives(
    width: int, window: int | None, newest: list[int], seed: int
) -> None:
    found, exact = attend(newest, width, window, seed)
    is_token = np.array(newest) >= 0
    np.testing.assert_allclose(found[is_token], exact[is_token], atol=CLOSE, rtol=0)
    assert not np.asarray(found[~is_token]).any()


def test_a_row_depends_on_no_other_and_not_on_where_its_pages_are() -> None:
    """To the last bit, with one thread's work or several's."""
    first, _ = attend([LENGTH - 2, -1, -1])
    for others, seed, spare in ((0, 1, 3), (LENGTH - 1, 2, 9)):
        np.testing.assert_array_equal(first[0], attend([LENGTH - 2, others, others], seed=seed, spare=spare)[0][0])


@pytest.mark.parametrize("scale", [0.0, 50.0])
def test_scores_that_are_all_alike_or_far_apart(scale: float) -> None:
    """Weights of 1 for all, or of one alone: `exp` at 0 and far below its range."""
    found, exact = attend([LENGTH - 1] * ROWS, scale=scale)
    np.testing.assert_allclose(found, exact, atol=CLOSE * max(scale, 1), rtol=0)


def test_a_row_with_nan_is_nan_alone() -> None:
    q, values = draw(ROWS, 1, HEADS, 16, seed=1), draw(1, ROWS * PER_ROW, 2, GROUPS, PAGE, 16, seed=2)
    table, positions = np.arange(ROWS * PER_ROW).reshape(ROWS, PER_ROW), np.full((ROWS, 1), LENGTH - 1)
    values[0, table[1], 0, :, 5] = np.nan
    found = np.asarray(by_pages(q, values, table, positions, None, 0.2))
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()
