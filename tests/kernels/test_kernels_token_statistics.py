"""Statistics of targets in blocks against plain formulas on full logits, and the memory that they take."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array
from lifecycle.kernels import vocabulary
from lifecycle.kernels.logits import soft_capped
from lifecycle.kernels.token_statistics import TokenStatistics, token_statistics

ONE_OP = 1e-5
B, T, D, V = 3, 13, 8, 40
QWEN_VOCAB, POSITIONS = 151_936, 16_384


def inputs() -> tuple[Array, Array, Array, Array, Array]:
    """Hidden states, head, targets, and weights of log-probabilities and of entropies."""
    draw = np.random.default_rng(0)
    shapes = (B, T, D), (V, D), (B, T), (B, T)
    hidden, head, first, second = (jnp.asarray(draw.standard_normal(shape), jnp.float32) for shape in shapes)
    return hidden, head, jnp.asarray(draw.integers(0, V, (B, T)), jnp.int32), first, second


def plain(
    hidden: Array, head: Array, targets: Array, soft_cap: float | None, temperature: float | Array
) -> TokenStatistics:
    logits = soft_capped(jnp.einsum("btd,vd->btv", hidden, head, precision="highest"), soft_cap) / temperature
    logprobs = jax.nn.log_softmax(logits)
    probs = jnp.exp(logprobs)
    chosen = jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0]
    return TokenStatistics(
        chosen, -(probs * logprobs).sum(-1), jnp.log((probs**2).sum(-1)), logits.mean(-1),
        (logits.argmax(-1) == targets).astype(jnp.float32),
    )  # fmt: skip


def everything(function: Callable[[Array, Array], TokenStatistics], arrays: tuple[Array, ...]) -> list[Array]:
    """The statistics, and the gradients of a sum of log-probabilities and entropies."""
    hidden, head, _, first, second = arrays

    def loss(hidden: Array, head: Array) -> tuple[Array, TokenStatistics]:
        found = function(hidden, head)
        return (first * found.logprobs + second * found.entropies).sum(), found

    (_, found), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)
    return [*jax.tree.leaves(found), *grads]


@partial(jax.jit, static_argnames=("soft_cap", "chunks", "temperature", "block"))
def ours(
    arrays: tuple[Array, ...], soft_cap: float | None, chunks: int, temperature: float, block: int,
    wanted: Array | None = None,
) -> list[Array]:  # fmt: skip
    with mock.patch.dict(vocabulary.BLOCK, {"float32": block}):  # while it is traced
        return everything(lambda h, w: token_statistics(h, w, arrays[2], soft_cap, chunks, temperature, wanted), arrays)


@partial(jax.jit, static_argnames="soft_cap")
def of_plain(
    arrays: tuple[Array, ...], wanted: Array, soft_cap: float | None = None, temperature: float | Array = 1.0
) -> list[Array]:
    """One program for all temperatures, and whatever is wanted."""

    def masked(hidden: Array, head: Array) -> TokenStatistics:
        return jax.tree.map(lambda x: jnp.where(wanted, x, 0), plain(hidden, head, arrays[2], soft_cap, temperature))

    return everything(masked, arrays)


def assert_same(found: list[Array], exact: list[Array]) -> None:
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, atol=3 * ONE_OP, rtol=1e-5)


@pytest.mark.parametrize(
    ("soft_cap", "temperature", "chunks", "block"),
    [(None, 1.0, 1, 12), (2.0, 1.0, 5, 512), (None, 0.7, 1, 512), (2.0, 0.7, 1, 12), (2.0, 1.3, 5, 4)],
)
def test_statistics_and_gradients_are_the_plain_ones(
    soft_cap: float | None, temperature: float, chunks: int, block: int
) -> None:
    exact = of_plain(inputs(), jnp.ones((B, T), bool), soft_cap, temperature)
    assert_same(ours(inputs(), soft_cap, chunks, temperature, block), exact)


@pytest.mark.parametrize("chunks", [1, 5])
@pytest.mark.parametrize("every", [1, 3, B * T + 1])
def test_what_is_not_wanted_is_zero_and_has_no_part_in_gradients(every: int, chunks: int) -> None:
    wanted = (jnp.arange(B * T).reshape(B, T) + 1) % every == 0
    assert_same(ours(inputs(), None, chunks, 1.0, 4 // chunks + 1, wanted), of_plain(inputs(), wanted))


def test_what_has_no_gradient_gives_none() -> None:
    hidden, head, targets, *_ = inputs()

    def loss(hidden: Array) -> Array:
        found = token_statistics(hidden, head, targets)
        return (found.log_squares + found.mean_logits + found.is_top1).sum()

    assert not np.asarray(jax.jit(jax.grad(loss))(hidden)).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_memory_at_a_large_vocabulary(dtype: Any) -> None:
    """Forward and backward over 16,384 positions, beside arguments and results; logits would take 10 GB in float32."""
    shapes = (((1, POSITIONS, 64), dtype), ((QWEN_VOCAB, 64), dtype), ((1, POSITIONS), jnp.int32))

    def loss(hidden: Array, head: Array, targets: Array) -> Array:
        found = token_statistics(hidden, head, targets)
        return (found.logprobs + 0.1 * found.entropies).sum()

    args = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    for program in (loss, jax.value_and_grad(loss, (0, 1))):
        memory: Any = jax.jit(program).lower(*args).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.5e9


def test_a_head_whose_rows_are_on_several_devices() -> None:
    hidden, head, targets, *_ = inputs()
    hidden = jnp.pad(hidden, ((0, 0), (0, 3), (0, 0)))  # positions that divide
    targets = jnp.pad(targets, ((0, 0), (0, 3)))
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    specs = (P(None, "tensor"), P("tensor", "fsdp"), P())
    found = jax.jit(jax.shard_map(token_statistics, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False))(
        hidden, head, targets
    )
    for ours, exact in zip(jax.tree.leaves(found), jax.tree.leaves(plain(hidden, head, targets, None, 1)), strict=True):
        np.testing.assert_allclose(ours, exact, atol=ONE_OP, rtol=1e-5)
