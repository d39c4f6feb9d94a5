"""Attention to pages against the definition; and to the last bit whatever else the batch holds, wherever pages lie."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.typing import Array
from lifecycle.kernels import paged, paged_flash, paged_gpu, paged_rows
from lifecycle.kernels.attention import reference_attention
from lifecycle.kernels.mask import Mask
from lifecycle.kernels.page_store import Entry, PageStore
from lifecycle.kernels.paged import paged_attention
from lifecycle.kernels.paged_rows import Rows, blocks_of

ROWS, PAGE, PER_ROW, HEADS, GROUPS, DIM, VALUE_DIM = 3, 6, 4, 6, 2, 8, 4
LENGTH = PAGE * PER_ROW - 3  # the most tokens of a row: less than its pages hold
CLOSE = 1e-6
definition = jax.jit(reference_attention, static_argnames=("scale", "soft_cap"))


def draw(*shape: int, seed: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def arrays(length: int) -> tuple[Array, Array, Array]:
    """Queries, and the keys and values of each row's positions."""
    slots = PER_ROW * PAGE
    q = draw(ROWS, length, HEADS, DIM, seed=1)
    return q, draw(ROWS, slots, GROUPS, DIM, seed=2), draw(ROWS, slots, GROUPS, VALUE_DIM, seed=3)


def tables(seed: int) -> np.ndarray:
    """Each row's pages, anywhere among twice as many."""
    return np.random.default_rng(seed).permutation(2 * ROWS * PER_ROW)[: ROWS * PER_ROW].reshape(ROWS, PER_ROW)


def stored(rows: Array, table: np.ndarray) -> Array:
    """A store of two layers, the second of which has the rows in their pages; what else there is, is not a number."""
    pages = rows.reshape(ROWS, PER_ROW, PAGE, *rows.shape[2:]).swapaxes(2, 3)
    store = jnp.full((2, 2 * ROWS * PER_ROW, *pages.shape[2:]), jnp.nan, rows.dtype)
    return store.at[1, table].set(pages)


def queries_of(newest: list[int], length: int) -> Array:
    """The last `length` positions up to each row's newest one, then padding; a row whose newest is -1 has none."""
    first = np.maximum(np.array(newest) + 1 - length, 0)
    positions = first[:, None] + np.arange(length)
    return jnp.asarray(np.where(positions <= np.array(newest)[:, None], positions, LENGTH))


@partial(jax.jit, static_argnames=("soft_cap", "scale", "window", "device"))
def ours(
    q: Array,
    k: Array,
    v: Array,
    table: Array,
    positions: Array,
    device: str = "cpu",
    window: int | None = None,
    **options: Any,
) -> Array:
    """`device`: whose form of the attention."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged, "platform", lambda: device)
        rows = Rows.of(positions, table, LENGTH, PAGE, window)
        store = PageStore(jnp.concatenate([k, v], axis=-1)[:, :, None], None, Entry.key_value(DIM, VALUE_DIM))
        return paged_attention(q, store, 1, rows, **options)


def attended(newest: list[int], length: int = 1, seed: int = 0, **options: Any) -> np.ndarray:
    (q, k, v), table = arrays(length), tables(seed)
    return np.asarray(ours(q, stored(k, table), stored(v, table), table, queries_of(newest, length), **options))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {}, "window": {"window": 5}, "soft cap": {"soft_cap": 2.0, "scale": 0.3}, "sinks": {"sinks": True}
}  # fmt: skip


@pytest.mark.parametrize(
    ("device", "options", "length"),
    [
        pytest.param(
            device, options, length, id=f"{device}-{name}-{length}", marks=() if is_default else pytest.mark.slow
        )
        for number, (name, options) in enumerate(OPTIONS.items())
        for device, length, is_default in (
            ("cpu", 1, number % 2), ("cpu", 4, not number % 2), ("tpu", 1, not number % 2), ("tpu", 4, number % 2)
        )
    ],  # by default each two of them together
)  # fmt: skip
@settings(max_examples=15)
@given(newest=st.lists(st.integers(-1, LENGTH - 1), min_size=ROWS, max_size=ROWS), seed=st.integers(0, 9))
def test_pages_give_what_the_definition_gives(
    device: str, options: dict[str, Any], length: int, newest: list[int], seed: int
) -> None:
    """Page by page, as a CPU reads them, and all at once."""
    own = dict(options)
    if own.get("sinks"):
        own["sinks"] = draw(HEADS, seed=4)
    (q, k, v), positions = arrays(length), queries_of(newest, length)
    found = attended(newest, length, seed, device=device, **own)
    here = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
    exact = definition(q, k, v, Mask(positions, here, window=own.pop("window", None)), **own)
    is_token = np.asarray(positions < LENGTH)
    np.testing.assert_allclose(found[is_token], np.asarray(exact)[is_token], atol=CLOSE, rtol=0)


@settings(max_examples=15)
@given(
    newest=st.lists(st.integers(0, LENGTH - 1), min_size=ROWS, max_size=ROWS),
    others=st.integers(0, LENGTH - 1),
    window=st.sampled_from([None, 7]),
)
def test_a_row_depends_on_no_other_and_not_on_where_its_pages_are(
    newest: list[int], others: int, window: int | None
) -> None:
    """To the last bit, though more pages are read for the others."""
    first = attended(newest, window=window)
    np.testing.assert_array_equal(first[0], attended([newest[0], -1, -1], window=window)[0])
    np.testing.assert_array_equal(first[0], attended([newest[0], others, others], seed=1, window=window)[0])


def test_a_short_row_reads_no_more_than_its_pages() -> None:
    """What is in the others may be anything, NaN too."""
    (q, k, v), table = arrays(1), tables(0)
    positions = queries_of([PAGE - 1] * ROWS, 1)
    clean = ours(q, stored(k, table), stored(v, table), table, positions)
    dirty_k, dirty_v = (stored(x.at[:, PAGE:].set(jnp.nan), table) for x in (k, v))
    np.testing.assert_array_equal(clean, ours(q, dirty_k, dirty_v, table, positions))


@pytest.mark.parametrize("device", ["cpu", "tpu"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_numbers_that_are_not_finite_reach_those_only_who_see_them(device: str, bad: float) -> None:
    """Left by earlier rows behind the newest tokens, in whole pages too; and in a token that one row sees."""
    (q, k, v), table, newest = arrays(1), jnp.asarray(tables(0)), np.array([LENGTH - 1, 2, PAGE])
    everywhere = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    entries = jnp.concatenate([k, v], axis=-1)[:, :LENGTH]
    empty = PageStore.empty((2, 2 * ROWS * PER_ROW, GROUPS, PAGE), Entry.key_value(DIM, VALUE_DIM), "float32")
    own = Rows.of(jnp.where(everywhere <= newest[:, None], everywhere, LENGTH), table, LENGTH, PAGE)
    clean = empty.written(1, own, entries)
    dirty = empty.written(1, Rows.of(everywhere, table, LENGTH, PAGE), jnp.full_like(entries, bad))
    dirty = dirty.written(1, own, entries.at[0, 5, 0, -1].set(bad))  # in a value

    @jax.jit
    def attend(store: PageStore) -> Array:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(paged, "platform", lambda: device)
            return paged_attention(q, store, 1, Rows.of(queries_of([*newest], 1), table, LENGTH, PAGE))

    found, expected = np.asarray(attend(dirty)), np.asarray(attend(clean))
    np.testing.assert_array_equal(found[1:], expected[1:])
    of_group = HEADS // GROUPS
    assert np.isnan(found[0, :, :of_group]).all()
    np.testing.assert_array_equal(found[0, :, of_group:], expected[0, :, of_group:])


def test_a_window_reads_no_page_that_it_has_left() -> None:
    (q, k, v), table = arrays(1), tables(0)
    positions = queries_of([2 * PAGE + 1, 3 * PAGE, 3 * PAGE + 1], 1)
    clean = ours(q, stored(k, table), stored(v, table), table, positions, window=2)
    dirty_k, dirty_v = (stored(x.at[:, : 2 * PAGE].set(jnp.nan), table) for x in (k, v))
    np.testing.assert_array_equal(clean, ours(q, dirty_k, dirty_v, table, positions, window=2))


def test_one_row_reads_its_pages_where_they_are() -> None:
    """A single row's pages are slices, not a gather: the same values."""
    (q, k, v), table = arrays(1), tables(0)
    keys, values, positions = stored(k, table), stored(v, table), queries_of([LENGTH - 1, 3, 9], 1)
    together = ours(q, keys, values, table, positions)
    for row in range(ROWS):
        alone = ours(q[row : row + 1], keys, values, table[row : row + 1], positions[row : row + 1])
        np.testing.assert_allclose(alone[0], together[row], atol=CLOSE, rtol=0)


def test_bfloat16_pages_are_read_in_the_queries_dtype() -> None:
    (q, k, v), table = arrays(1), tables(0)
    positions = queries_of([LENGTH - 1] * ROWS, 1)
    keys, values = (stored(x.astype(jnp.bfloat16), table) for x in (k, v))
    found = ours(q, keys, values, table, positions)
    exact = ours(q, keys.astype(jnp.float32), values.astype(jnp.float32), table, positions)
    np.testing.assert_array_equal(found, exact)


LANES, POSITIONS, LONG = 128, 8, 40
ALL_OPTIONS = {"window": 11, "soft_cap": 2.0, "sinks": True}


@partial(jax.jit, static_argnames=("device", "soft_cap", "window"))
def by_kernel(
    device: str,
    q: Array,
    store: PageStore,
    table: Array,
    positions: Array,
    window: int | None = None,
    **options: Any,
) -> Array:
    """The kernel of TPUs, interpreted, in blocks of two pages; that of GPUs, 16 rows to a program, a split a page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged_rows, "platform", lambda: device)
        patch.setattr(paged_gpu, "FEWEST", POSITIONS)
        patch.setattr(paged_gpu, "SIDE", 16)
        for name in ("BLOCK", "LONG_BLOCK"):
            patch.setattr(paged_rows, name, 2 * POSITIONS)
        rows = Rows.of(positions, table, LONG, POSITIONS, window)
        kernel = {"tpu": paged_flash.paged_flash, "gpu": paged_gpu.paged_gpu}[device]
        return kernel(q, store, 1, rows, scale=0.1, interpret=True, **options)


@partial(jax.jit, static_argnums=(0, 1, 2))
def held(entry: Entry, groups: int, dtype: str, newest: Array) -> tuple[PageStore, Array, tuple[Array, Array]]:
    """A store of two layers whose second has rows in pages, anywhere, behind whose newest tokens lies what was not
    finite; their table; and the keys and values it holds, with zeros there."""
    table = jnp.asarray(np.random.default_rng(0).permutation(24)[:20].reshape(4, 5))
    rows = Rows.of(jnp.broadcast_to(jnp.arange(LONG), (4, LONG)), table, LONG, POSITIONS)
    is_own = jnp.arange(LONG) <= newest[:, None]
    entries = jnp.where(is_own[..., None, None], draw(4, LONG, groups, entry.width, seed=2), jnp.nan)
    store = PageStore.empty((2, 24, groups, POSITIONS), entry, dtype).written(1, rows, entries)
    keys, values = (jnp.where(is_own[..., None, None], x, 0) for x in store.rows(1, table))
    return store, table, (keys, values)


@pytest.mark.parametrize(
    ("device", "length", "dtype", "options"),
    [
        pytest.param("tpu", 1, "float32", {}, id="tokens"),
        pytest.param("tpu", 1, "int8", {}, id="int8", marks=pytest.mark.slow),
        pytest.param("tpu", 20, "float32", ALL_OPTIONS, id="chunks with all options"),
        pytest.param("tpu", 3, "float8_e4m3fn", {"is_latent": True}, id="fp8 latents", marks=pytest.mark.slow),
        pytest.param("tpu", 1, "float32", {"window": 3}, id="a window", marks=pytest.mark.slow),
        pytest.param("tpu", 3, "float32", {"is_latent": True}, id="latents", marks=pytest.mark.slow),
        pytest.param("tpu", 20, "int8", ALL_OPTIONS, id="int8 chunks", marks=pytest.mark.slow),
        pytest.param("gpu", 1, "int8", {"window": 3}, id="gpu"),
        pytest.param("gpu", 20, "float32", ALL_OPTIONS, id="gpu chunks"),
        pytest.param("gpu", 3, "int8", {"is_latent": True}, id="gpu latents", marks=pytest.mark.slow),
    ],
)
def test_kernels_give_what_the_definition_gives(device: str, length: int, dtype: str, options: dict[str, Any]) -> None:
    """Rows of many blocks, of one, and of padding only; their pages anywhere; of what is stored. NaN, left behind the
    newest tokens, reaches none."""
    own, newest = dict(options), np.array([LONG - 1, 4, -1, 17])
    is_latent, groups = own.pop("is_latent", False), 1 if options.get("is_latent") else 2
    first = np.maximum(newest + 1 - length, 0)[:, None] + np.arange(length)
    positions = np.where(first <= newest[:, None], first, LONG)
    # a latent on TPUs: of slices of whole lanes; on GPUs: of unequal parts in one slice
    latent = Entry((2 * LANES, LANES), 2, 0, 3) if device == "tpu" else Entry.latent(2 * LANES, LANES)
    store, table, (k, v) = held(latent if is_latent else Entry.key_value(LANES, LANES), groups, dtype, newest)
    q = draw(4, length, 4, k.shape[-1], seed=1) / (k.shape[-1] // 64)  # scores of about 1
    if own.get("sinks"):
        own["sinks"] = draw(4, seed=4)
    found = by_kernel(device, q, store, table, positions, **own)
    here = jnp.broadcast_to(jnp.arange(LONG), (4, LONG))
    mask = Mask(jnp.asarray(positions), here, window=own.pop("window", None))
    exact = definition(q, k, v, mask, scale=0.1, **own)
    is_token = positions < LONG
    np.testing.assert_allclose(np.asarray(found)[is_token], np.asarray(exact)[is_token], atol=CLOSE, rtol=0)
    assert np.isfinite(found).all()


@given(
    spans=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted), min_size=4, max_size=4),
)
@settings(max_examples=30)
def test_the_kernels_grid_has_each_block_of_each_row_once_and_no_other(spans: list[list[int]]) -> None:
    first, last = np.array(spans, np.int32).T
    blocks = jax.jit(blocks_of, static_argnums=2)(first, last, 7)
    names, count = ("row", "block", "is_first", "is_last"), int(blocks["count"])
    found = list(zip(*(np.asarray(blocks[name])[:count].tolist() for name in names), strict=True))
    assert found == [
        (row, block, block == one[0], block == one[1])
        for row, one in enumerate(spans)
        for block in range(one[0], one[1] + 1)
    ]
