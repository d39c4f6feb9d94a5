"""The divergence of a student from a teacher in blocks against the formula on full logits, and its memory."""

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
from lifecycle.kernels import divergence as module
from lifecycle.kernels.divergence import Divergence, Predictions, divergence
from lifecycle.kernels.logits import soft_capped

ONE_OP = 1e-5
B, T, V = 3, 8, 40
WIDTH, TEACHER_WIDTH = 8, 12
QWEN_VOCAB, POSITIONS = 151_936, 16_384
CAPS = (4.0, 7.0)
# Of beta and chunks of the vocabulary; both ends and what is between them, and each number of chunks, are in all gates.
EACH_WITH_EACH = [
    *((0.0, 4), (0.3, 1), (1.0, 4)),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((0.0, 1), (0.3, 4), (1.0, 1))),
]


def draws(scale: float = 1.0) -> tuple[Array, ...]:
    """The student's hidden states and head, the teacher's, and weights."""
    draw = np.random.default_rng(0)
    shapes = (B, T, WIDTH), (V, WIDTH), (B, T, TEACHER_WIDTH), (V, TEACHER_WIDTH)
    arrays = (jnp.asarray(scale * draw.standard_normal(shape), jnp.float32) for shape in shapes)
    return *arrays, jnp.asarray(draw.random((B, T)) * (draw.random((B, T)) < 0.7), jnp.float32)


def in_blocks(
    hidden: Array, head: Array, teacher: Array, teacher_head: Array, weights: Array,
    of: Divergence, caps: tuple[float | None, float | None] = (None, None), chunks: int = 1,
) -> tuple[Array, Array]:  # fmt: skip
    sides = Predictions(hidden, head, caps[0]), Predictions(teacher, teacher_head, caps[1])
    return divergence(*sides, weights, of, chunks)


def formula(
    hidden: Array, head: Array, teacher: Array, teacher_head: Array, weights: Array,
    of: Divergence, caps: tuple[float | None, float | None] = (None, None), end: float | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Agarwal et al. 2024, equation 1, as it is written; its limits at the `end` 0 or 1 of `beta`."""

    def distribution(x: Array, table: Array, cap: float | None) -> Array:
        logits = soft_capped(jnp.einsum("btd,vd->btv", x, table, precision="highest"), cap)
        return jax.nn.softmax(logits / of.temperature)

    def kl(p: Array, q: Array) -> Array:
        return (p * (jnp.log(p) - jnp.log(q))).sum(-1)

    q, p = distribution(hidden, head, caps[0]), distribution(teacher, teacher_head, caps[1])
    m = of.beta * p + (1 - of.beta) * q
    ends = {0.0: kl(p, q), 1.0: kl(q, p)}
    values = of.beta * kl(p, m) + (1 - of.beta) * kl(q, m) if end is None else ends[end]
    return (weights * values).sum(), -(weights * (q * jnp.log(q)).sum(-1)).sum()


def everything(function: Any, arrays: tuple[Array, ...]) -> list[Array]:
    """Both sums, and the gradients of twice the first in the student's arrays."""

    def loss(hidden: Array, head: Array) -> tuple[Array, Any]:
        found = function(hidden, head, *arrays[2:])
        return 2 * found[0], found

    (_, found), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(*arrays[:2])
    return [*found, *grads]


@partial(jax.jit, static_argnames=("of", "caps", "chunks", "most"))
def ours(
    arrays: tuple[Array, ...], of: Divergence, caps: Any = (None, None), chunks: int = 1, most: int = module.MOST_LOGITS
) -> list[Array]:
    with mock.patch.object(module, "MOST_LOGITS", most):  # while it is traced
        return everything(partial(in_blocks, of=of, caps=caps, chunks=chunks), arrays)


@partial(jax.jit, static_argnames=("caps", "end"))
def _of_formula(arrays: tuple[Array, ...], of: Divergence, caps: Any, end: float | None) -> list[Array]:
    return everything(partial(formula, of=of, caps=caps, end=end), arrays)


def of_formula(arrays: tuple[Array, ...], of: Divergence, caps: Any = (None, None)) -> list[Array]:
    """One program for all values of `beta` between its ends, and all temperatures."""
    return _of_formula(arrays, of, caps, of.beta if of.beta in (0, 1) else None)


def assert_same(found_ones: list[Array], exact: list[Array]) -> None:
    for found, expected in zip(found_ones, exact, strict=True):
        assert np.any(np.asarray(expected))
        np.testing.assert_allclose(found, expected, atol=3 * ONE_OP, rtol=ONE_OP)


# Others between the ends are the same program with another number.
@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0, *(pytest.param(beta, marks=pytest.mark.long) for beta in (0.5, 0.9))])
@pytest.mark.parametrize(
    ("temperature", "caps", "chunks", "most"), [(1.0, (None, None), 1, 400), (0.7, CAPS, 5, 64), (2.0, CAPS, 1, 10_000)]
)
def test_sums_and_gradients_are_the_formulas(
    beta: float, temperature: float, caps: tuple[Any, Any], chunks: int, most: int
) -> None:
    """`most`: of eight positions the last block is padded, or all are in one."""
    of, arrays = Divergence(beta, temperature), draws()
    assert_same(ours(arrays, of, caps, chunks, most), of_formula(arrays, of, caps))


@pytest.mark.parametrize(("beta", "chunks"), EACH_WITH_EACH)
def test_distributions_far_apart_are_finite(beta: float, chunks: int) -> None:
    """Logits of up to 180: most probabilities are 0 in float32. In float64 the formula has them."""
    of, arrays = Divergence(beta), draws(4.0)
    with jax.enable_x64():
        exact = of_formula(tuple(jnp.asarray(np.asarray(array, np.float64)) for array in arrays), of)
    for found, expected in zip(ours(arrays, of, chunks=chunks, most=400), exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("beta", "chunks"), EACH_WITH_EACH)
def test_ids_that_are_left_out_are_in_no_distribution(beta: float, chunks: int) -> None:
    """As if neither head had their rows, and these have no gradient."""
    arrays, num = draws(), 23  # in the midst of a chunk
    found = ours(arrays, Divergence(beta, 1.5, num), CAPS, chunks)
    cut = tuple(array[:num] if len(array) == V else array for array in arrays)
    assert_same([*found[:3], found[3][:num]], of_formula(cut, Divergence(beta, 1.5), CAPS))
    assert not np.any(np.asarray(found[3][num:]))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_student_like_its_teacher_has_nothing_to_learn(beta: float) -> None:
    hidden, head, *_, weights = draws()
    loss, _, *grads = ours((hidden, head, hidden, head, weights), Divergence(beta))
    assert abs(loss) < 1e-6 and all(np.abs(grad).max() < 1e-5 for grad in grads)


def test_only_the_student_learns() -> None:
    both = partial(in_blocks, of=Divergence(0.5))
    for number, learns in ((0, {0, 1}), (1, set())):
        grads = jax.jit(jax.grad(lambda *arrays: both(*arrays)[number], range(5)))(*draws())  # noqa: B023
        assert {place for place, grad in enumerate(grads) if np.any(grad)} == learns


def test_in_bfloat16_it_is_near() -> None:
    hidden, head, teacher, teacher_head, weights = draws()
    rounded = hidden.astype(jnp.bfloat16), head, teacher.astype(jnp.bfloat16), teacher_head, weights
    loss, _ = jax.jit(partial(in_blocks, of=Divergence(0.5)))(*rounded)  # without a gradient
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, of_formula(draws(), Divergence(0.5))[0], rtol=2e-2)


@pytest.mark.parametrize("chunks", [1, 2])
def test_heads_whose_rows_and_columns_are_on_several_devices(chunks: int) -> None:
    of, arrays = Divergence(0.3, 1.5, 29), draws()
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    rows, table = P(None, "tensor"), P("tensor", "fsdp")

    def local(*given: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        def loss(*own: Array) -> tuple[Array, Any]:
            found = in_blocks(*own, *given[2:], of=of, chunks=chunks)
            return found[0], found  # both devices of `fsdp` have the same rows: together, twice the loss

        (_, found), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(*given[:2])
        return found, (jax.lax.psum(grads[0], "fsdp"), grads[1])

    specs = (rows, table, rows, table, P())
    outs = ((P(), P()), (rows, table))
    found, grads = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False))(*arrays)
    assert_same([*found, *grads], ours(arrays, of))


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
@pytest.mark.parametrize("chunks", [1, 8])
def test_memory_at_a_large_vocabulary(dtype: Any, chunks: int) -> None:
    """Forward and backward over 16,384 positions, beside arguments and results; logits would take 20 GB in float32."""
    hidden, head = ((1, POSITIONS, 64), dtype), ((QWEN_VOCAB, 64), dtype)
    shapes = (hidden, head, ((1, POSITIONS, 96), dtype), ((QWEN_VOCAB, 96), dtype), ((1, POSITIONS), jnp.float32))
    function = partial(in_blocks, of=Divergence(0.5, 2.0), chunks=chunks)
    args = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    for program in (function, jax.value_and_grad(lambda *given: function(*given)[0], (0, 1))):
        memory: Any = jax.jit(program).lower(*args).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.5e9
