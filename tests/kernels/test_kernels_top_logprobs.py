"""The likeliest ids in blocks against a sort of all logits, and the divergence over few ids against whole ones."""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array
from lifecycle.kernels import top_logprobs as module
from lifecycle.kernels.few_ids import few_ids_divergence
from lifecycle.kernels.logits import soft_capped
from lifecycle.kernels.top_logprobs import Among, top_logprobs

B, T, V, D = 3, 8, 40, 8
QWEN_VOCAB, POSITIONS = 151_936, 16_384


def draws(seed: int = 0) -> tuple[Array, Array, Array]:
    """Hidden states, a head, and which positions are wanted; half of the hidden states are whole numbers, so that
    logits tie."""
    draw = np.random.default_rng(seed)
    hidden, head = draw.standard_normal((B, T, D)), draw.integers(-1, 2, (V, D))
    hidden[:, ::2] = np.round(hidden[:, ::2])
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32), jnp.asarray(draw.random((B, T)) < 0.6)


def plain(hidden: Array, head: Array, num: int, among: Among, soft_cap: float | None) -> tuple[Any, Any]:
    logits = soft_capped(jnp.einsum("btd,vd->btv", hidden, head, precision="highest"), soft_cap)
    logprobs = np.asarray(jax.nn.log_softmax(logits[..., : among.num_ids] / among.temperature))
    ids = np.argsort(-logprobs, axis=-1, kind="stable")[..., :num]
    return ids, np.take_along_axis(logprobs, ids, axis=-1)


@pytest.mark.parametrize(
    ("num", "among", "soft_cap", "chunks", "most"),
    [
        (5, Among(), None, 1, 400),
        (7, Among(1.5, 23), 3.0, 4, 64),
        (V, Among(0.5), None, 5, 64),
        (1, Among(), 2.0, 1, 9),
    ],
)
def test_ids_and_logprobs_are_those_of_a_sort(
    num: int, among: Among, soft_cap: float | None, chunks: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LOGITS", most)
    hidden, head, wanted = draws()
    ids, logprobs = jax.jit(partial(top_logprobs, num=num, among=among, soft_cap=soft_cap, chunks=chunks))(
        hidden, head, wanted=wanted
    )
    expected_ids, expected = plain(hidden, head, num, among, soft_cap)
    is_wanted = np.asarray(wanted)
    np.testing.assert_array_equal(np.asarray(ids)[is_wanted], expected_ids[is_wanted])
    np.testing.assert_allclose(np.asarray(logprobs)[is_wanted], expected[is_wanted], atol=1e-5)
    assert not np.asarray(ids)[~is_wanted].any() and not np.asarray(logprobs)[~is_wanted].any()


def test_devices_with_parts_of_the_vocabulary_find_the_same() -> None:
    """With more ids than a device has, and a part of which no id counts."""
    hidden, head, wanted = draws()
    mesh = Mesh(np.array(jax.devices()[:4]), ("tensor",))
    find = partial(top_logprobs, num=12, among=Among(1.0, 28))
    cut = jax.shard_map(
        lambda hidden, head, wanted: find(hidden, head, wanted=wanted),
        mesh=mesh, in_specs=(P(None, "tensor"), P("tensor"), P()), out_specs=P(), check_vma=False,
    )  # fmt: skip
    ids, logprobs = jax.jit(cut)(hidden, head, wanted)
    expected_ids, expected = jax.jit(find)(hidden, head, wanted=wanted)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def log_softmax(draw: np.random.Generator, scale: float, num: int) -> Array:
    return jax.nn.log_softmax(jnp.asarray(scale * draw.standard_normal((1, 3, num)), jnp.float32))


@settings(max_examples=25)
@example(695, 1.0, True, 30.0)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.booleans(), st.sampled_from([0.1, 1.0, 30.0]))
def test_few_ids_never_tell_more_than_all_do(seed: int, beta: float, add_tail: bool, scale: float) -> None:
    """With a tail outcomes are joined, so a divergence falls (the data processing inequality); it is never negative,
    and over all ids it is the whole one."""
    draw, num = np.random.default_rng(seed), 12
    log_q, log_p = (log_softmax(draw, scale, num) for _ in range(2))
    every = jnp.ones(log_q.shape, bool)
    whole = few_ids_divergence(log_q, log_p, every, beta, add_tail=False)
    known = every.at[..., 5:].set(False)
    few = few_ids_divergence(log_q, log_p, known, beta, add_tail)
    again = few_ids_divergence(log_q, log_p, every, beta, add_tail=True)
    assert np.isfinite(few).all() and (np.asarray(few) > -1e-5).all()
    np.testing.assert_allclose(again, whole, atol=1e-4, rtol=1e-4)
    if add_tail:
        # A tail is one less the known probabilities: where it is small, their rounding is a share of it.
        tails = [np.exp(np.asarray(own, np.float64)[..., 5:]).sum(-1) for own in (log_q, log_p)]
        rounding = 2.0**-22 * (tails[0] / tails[1] + tails[1] / tails[0])
        assert (np.asarray(few) <= np.asarray(whole) * 1.0001 + 1e-4 + rounding).all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("add_tail", [False, True])
def test_gradients_are_finite_at_the_ends(beta: float, add_tail: bool) -> None:
    """Of a student that is sure of one of the ids, or of none; of a teacher that is sure; and of no ids at all."""
    sure, unsure, mild = [-1e-9, -60.0, -80.0], [-70.0, -90.0, -100.0], np.log([0.2, 0.1, 0.05]).tolist()
    some, none = [True, True, False], [False] * 3
    cases = list(product((sure, unsure), (sure, unsure, mild), (some, none)))
    log_q, log_p, known = (jnp.array([list(column)]) for column in zip(*cases, strict=True))

    def loss(log_q: Array) -> tuple[Array, Array]:
        values = few_ids_divergence(log_q, log_p, known, beta, add_tail)
        return values.sum(), values

    (_, values), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(log_q)
    assert np.isfinite(values).all() and np.isfinite(grad).all() and not np.asarray(grad)[..., 2].any()


@pytest.mark.long
def test_memory_at_a_large_vocabulary() -> None:
    shapes = (8, POSITIONS // 8, 1024), (QWEN_VOCAB, 1024), (8, POSITIONS // 8)
    types = jnp.bfloat16, jnp.bfloat16, jnp.bool_
    args = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    program = partial(top_logprobs, num=64, among=Among())
    compiled = jax.jit(lambda hidden, head, wanted: program(hidden, head, wanted=wanted)).lower(*args).compile()
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.5e9 + QWEN_VOCAB * 1024 * 2  # the head in the layout of a product
