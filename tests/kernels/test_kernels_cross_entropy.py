"""Blocked cross-entropy and log-probabilities against optax, and that logits `[B, T, V]` never exist."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from lifecycle.core.typing import Array
from lifecycle.kernels import cross_entropy as module
from lifecycle.kernels import logits as sums
from lifecycle.kernels.cross_entropy import cross_entropy, cross_entropy_and_metrics
from lifecycle.kernels.logits import project, soft_capped
from lifecycle.kernels.token_statistics import token_logprobs
from lifecycle.model.params import abstract_params
from lifecycle.testing.jobs import objective_of
from lifecycle.testing.tiny_rows import MODEL, SEQ_LEN

ONE_OP = 1e-5
B, T, D, V = 3, 13, 8, 40


def inputs(dtype: Any = jnp.float32) -> tuple[Array, Array, Array, Array]:
    draw = np.random.default_rng(0)
    hidden, head = (jnp.asarray(draw.standard_normal(shape), dtype) for shape in ((B, T, D), (V, D)))
    weights = draw.random((B, T)) * (draw.random((B, T)) < 0.7)
    return hidden, head, jnp.asarray(draw.integers(0, V, (B, T)), jnp.int32), jnp.asarray(weights, jnp.float32)


def plain(hidden: Array, head: Array, targets: Array, soft_cap: float | None = None, z_weight: float = 0.0) -> Array:
    """Each position's loss by optax; with PaLM's z-loss as it is written (Chowdhery et al. 2022, section 5)."""
    logits = jnp.einsum("btd,vd->btv", hidden, head, precision="highest", preferred_element_type=jnp.float32)
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return nats + z_weight * jax.nn.logsumexp(logits, axis=-1) ** 2


def in_blocks(block: int) -> Any:
    """Positions in a block, while a function is traced that is compiled for each block."""
    return mock.patch.dict(module.BLOCK, {"float32": block})


@partial(jax.jit, static_argnames=("soft_cap", "z_weight"))
def of_optax(
    hidden: Array, head: Array, targets: Array, weights: Array, soft_cap: float | None = None, z_weight: float = 0.0
) -> Any:
    """The plain loss and its gradients, compiled once for the whole file."""

    def loss(hidden: Array, head: Array) -> Array:
        return (plain(hidden, head, targets, soft_cap, z_weight) * weights).sum()

    return jax.value_and_grad(loss, (0, 1))(hidden, head)


@partial(jax.jit, static_argnames=("block", "soft_cap", "chunks", "z_weight"))
def of_cross_entropy(
    hidden: Array, head: Array, targets: Array, weights: Array,
    block: int = 512, soft_cap: float | None = None, chunks: int = 1, z_weight: float = 0.0,
) -> Any:  # fmt: skip
    with in_blocks(block):
        return jax.value_and_grad(cross_entropy, (0, 1))(hidden, head, targets, weights, soft_cap, chunks, z_weight)


@partial(jax.jit, static_argnames=("block", "soft_cap", "chunks"))
def of_logprobs(
    hidden: Array, head: Array, targets: Array, weights: Array,
    block: int = 512, soft_cap: float | None = None, chunks: int = 1,
) -> Any:  # fmt: skip
    """As `of_cross_entropy`, with each target's log-probability beside the value."""

    def loss(hidden: Array, head: Array) -> tuple[Array, Array]:
        logprobs = token_logprobs(hidden, head, targets, soft_cap, chunks)
        return -(logprobs * weights).sum(), logprobs

    with in_blocks(block):
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)


@partial(jax.jit, static_argnames=("block", "soft_cap", "chunks", "z_weight"))
def without_gradients(
    hidden: Array, head: Array, targets: Array, weights: Array,
    block: int = 512, soft_cap: float | None = None, chunks: int = 1, z_weight: float = 0.0,
) -> tuple[Array, Array]:  # fmt: skip
    """The forward pass alone, which is another program: the loss and the log-probabilities."""
    with in_blocks(block):
        loss = cross_entropy(hidden, head, targets, weights, soft_cap, chunks, z_weight)
        return loss, token_logprobs(hidden, head, targets, soft_cap, chunks)


def assert_near(found: Any, exact: Any, atol: float = ONE_OP) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-6), found, exact)


@pytest.mark.parametrize("block", [12, 15, 512])  # of 4 and 5 positions, which do not divide 13; the whole row
def test_losses_and_log_probabilities_are_optax_value_and_gradients(block: int) -> None:
    hidden, head, targets, weights = inputs()
    exact = of_optax(hidden, head, targets, weights)
    assert_near(of_cross_entropy(hidden, head, targets, weights, block), exact)
    (value, logprobs), grads = of_logprobs(hidden, head, targets, weights, block)
    assert_near((value, grads), exact)
    loss, alone = without_gradients(hidden, head, targets, weights, block)
    assert loss == pytest.approx(float(exact[0]), rel=1e-6)
    for found in (logprobs, alone):
        np.testing.assert_allclose(found, -plain(hidden, head, targets), atol=ONE_OP)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, head, targets, weights = inputs()
    loss = jax.jit(lambda h, w: cross_entropy(h, w, targets, weights))
    check_grads(loss, (hidden, head), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    logprobs = jax.jit(lambda h, w: token_logprobs(h, w, targets))
    check_grads(logprobs, (hidden, head), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize(("chunks", "block"), [(1, 512), (5, 512), (5, 4)])  # 4 x 5 positions: two blocks of them
def test_chunks_of_the_vocabulary_and_a_soft_cap_give_the_plain_loss(
    chunks: int, block: int, soft_cap: float | None
) -> None:
    settings = {"block": block, "soft_cap": soft_cap, "chunks": chunks}
    exact = of_optax(*inputs(), soft_cap)
    assert_near(of_cross_entropy(*inputs(), **settings), exact)
    (value, _), grads = of_logprobs(*inputs(), **settings)
    assert_near((value, grads), exact)


@pytest.mark.parametrize(("chunks", "soft_cap"), [(1, None), (1, 2.0), (5, 2.0)])
def test_the_z_loss_is_the_square_of_the_log_normaliser(chunks: int, soft_cap: float | None) -> None:
    """With a weight so large that it is most of the loss."""
    settings = {"soft_cap": soft_cap, "z_weight": 0.5}
    exact = of_optax(*inputs(), **settings)
    assert_near(of_cross_entropy(*inputs(), chunks=chunks, **settings), exact, 2 * ONE_OP)
    assert without_gradients(*inputs(), chunks=chunks, **settings)[0] == pytest.approx(float(exact[0]), rel=1e-6)


def test_neither_the_head_nor_its_gradient_is_whole_in_chunks() -> None:
    """At a vocabulary of 151,936 (Qwen 3): what the program makes is at most a chunk wide."""
    vocab, chunks = 151_936, 16
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((2, 64, 32), (vocab, 32))]
    ids, weights = (jax.ShapeDtypeStruct((2, 64), dtype) for dtype in (jnp.int32, jnp.float32))

    def largest(num: int) -> int:
        loss = jax.grad(lambda h, w, t, m: cross_entropy(h, w, t, m, None, num), (0, 1))
        memory: Any = jax.jit(loss).lower(*args, ids, weights).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert largest(chunks) < largest(1) / 4


QWEN_VOCAB = 151_936


def plain_sum(hidden: Array, head: Array, targets: Array, weights: Array) -> Array:
    return (plain(hidden, head, targets) * weights).sum()


@pytest.mark.parametrize("chunks", [1, 16])
def test_at_a_large_vocabulary_value_and_gradients_are_the_plain_ones(chunks: int) -> None:
    draw = np.random.default_rng(0)
    hidden, head = (draw.standard_normal(shape, np.float32) for shape in ((2, 8, 16), (QWEN_VOCAB, 16)))
    targets, weights = draw.integers(0, QWEN_VOCAB, (2, 8), np.int32), draw.random((2, 8), np.float32)
    found = of_cross_entropy(hidden, head, targets, weights, 256, chunks=chunks)
    assert_near(found, of_optax(hidden, head, targets, weights))


def temporary_bytes(function: Callable[..., Array], is_backward: bool) -> int:
    """Memory beside arguments and results of the compiled loss over 2 rows of 1,024 positions of 32 dimensions."""
    shapes = {(2, 1024, 32): jnp.float32, (QWEN_VOCAB, 32): jnp.float32, (2, 1024): jnp.int32}
    args = [jax.ShapeDtypeStruct(*item) for item in shapes.items()] + [jax.ShapeDtypeStruct((2, 1024), jnp.float32)]
    program = jax.value_and_grad(function, (0, 1)) if is_backward else function
    memory: Any = jax.jit(program).lower(*args).compile().memory_analysis()
    return memory.temp_size_in_bytes


def test_memory_at_a_large_vocabulary_against_the_plain_loss() -> None:
    """The plain loss holds all logits, 1,245 MB in float32, and their gradient in the backward pass: 1,245 and 2,489
    MB. Fused, in blocks of 256 positions, 156 and 312 MB; in 16 chunks of the vocabulary 156 and 156 MB. (Chunks are of
    the gradient: a forward pass alone always goes by blocks.)"""
    logits = 4 * 2 * 1024 * QWEN_VOCAB

    def fused(chunks: int) -> Callable[..., Array]:
        return lambda h, w, t, m: cross_entropy(h, w, t, m, None, chunks)

    plain_forward, plain_backward = temporary_bytes(plain_sum, False), temporary_bytes(plain_sum, True)
    assert plain_forward >= logits and plain_backward >= 2 * logits
    assert temporary_bytes(fused(1), False) < logits / 7 and temporary_bytes(fused(1), True) < plain_backward / 7
    assert temporary_bytes(fused(16), True) < plain_backward / 15


def test_chunks_never_take_more_memory_than_one_pass() -> None:
    """Over 32,768 positions, where 8 chunks without blocks of positions would hold 2.5 GB of logits."""
    shapes = {(2, 16_384, 32): jnp.float32, (QWEN_VOCAB, 32): jnp.float32, (2, 16_384): jnp.int32}
    args = [jax.ShapeDtypeStruct(*item) for item in shapes.items()] + [jax.ShapeDtypeStruct((2, 16_384), jnp.float32)]

    def temporary(chunks: int) -> int:
        program = jax.grad(lambda h, w, t, m: cross_entropy(h, w, t, m, None, chunks), (0, 1))
        memory: Any = jax.jit(program).lower(*args).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert temporary(8) < temporary(1)


def test_an_incoming_gradient_scales_both() -> None:
    scaled = jax.jit(jax.value_and_grad(lambda *args: -2 * cross_entropy(*args), (0, 1)))
    once, twice = of_cross_entropy(*inputs()), scaled(*inputs())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, -2 * a, rtol=1e-6), once, twice)


def test_bfloat16_inputs_give_float32_losses_and_bfloat16_gradients() -> None:
    hidden, head, targets, weights = inputs(jnp.bfloat16)
    value, grads = of_cross_entropy(hidden, head, targets, weights)
    exact = (plain(hidden.astype(jnp.float32), head.astype(jnp.float32), targets) * weights).sum()
    assert value.dtype == jnp.float32 and [grad.dtype for grad in grads] == [jnp.bfloat16] * 2
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    assert token_logprobs(hidden, head, targets).dtype == project(hidden, head).dtype == jnp.float32


def test_extreme_logits_stay_finite() -> None:
    hidden, head, targets, weights = inputs()
    value, grads = of_cross_entropy(hidden * 1e3, head, targets, weights)
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)


def array_shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """The shape of every array that a program makes, in the programs inside it too."""
    for equation in jaxpr.eqns:
        yield from (out.aval.shape for out in equation.outvars if hasattr(out.aval, "shape"))
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from array_shapes(inner)


def full_logits(function: Callable[..., Any], *args: Any, positions: int, vocab: int) -> list[tuple[int, ...]]:
    """Shapes in the program of `function` that hold the logits of all positions at once."""
    shapes = array_shapes(jax.make_jaxpr(function)(*args).jaxpr)
    return [shape for shape in shapes if vocab in shape and np.prod(shape) >= positions * vocab]


@pytest.mark.parametrize("objective", ["next_token", "dpo", "orpo"])
def test_logits_of_a_whole_batch_never_exist_in_training(objective: str) -> None:
    rows, length, pairs = 64, 2 * SEQ_LEN, 3
    ids, floats = (jax.ShapeDtypeStruct((rows, length), dtype) for dtype in (jnp.int32, jnp.float32))
    batch = {"tokens": ids, "targets": ids, "positions": ids, "segment_ids": ids, "loss_mask": floats}
    batch |= {"target_mask": floats, "answer_positions": ids, "row": jax.ShapeDtypeStruct((rows,), jnp.int32)}
    batch["group_mask"] = jax.ShapeDtypeStruct((rows, pairs), jnp.float32)
    batch["ref_logprobs"] = jax.ShapeDtypeStruct((rows, pairs, 2), jnp.float32)
    step = jax.value_and_grad(lambda params, batch: objective_of(objective)(params, batch).loss)
    assert not full_logits(step, abstract_params(MODEL), batch, positions=rows * length, vocab=MODEL.vocab_size)


def test_the_search_for_full_logits_finds_them() -> None:
    hidden, head, targets, _ = inputs()
    nested = jax.jit(lambda h: jax.lax.map(lambda _: plain(h, head, targets), jnp.arange(2)))
    assert (B, T, V) in full_logits(nested, hidden, positions=B * T, vocab=V)


@pytest.mark.parametrize(("above", "is_over"), [(-50.0, False), (100.0, False), (200.0, True), (np.nan, True)])
def test_a_shift_known_before_the_logits_is_replaced_where_sums_are_too_large(
    above: float, is_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On TPUs. `above`: by how much a later logit is larger than the first ones."""
    monkeypatch.setattr(sums, "platform", lambda: "tpu")
    monkeypatch.setattr(sums, "NUM_FIRST", 2)
    logits = jnp.array([[1.0, 3.0, 2.0, -5.0], [1.0, 3.0, 2.0, 3.0 + above]])
    shift, total = sums.exponential_sums(
        jnp.eye(2), logits.T, logits, None
    )  # the head's products with these rows are `logits`
    np.testing.assert_allclose(
        (jnp.log(total) + shift)[:, 0], jax.nn.logsumexp(logits, axis=-1), atol=ONE_OP, rtol=ONE_OP
    )
    assert jnp.array_equal(shift[:, 0], logits.max(-1), equal_nan=True) == is_over


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_a_tpus_loss_is_that_of_others(soft_cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "platform", lambda: "tpu")
    compiled = jax.jit(jax.value_and_grad(cross_entropy, (0, 1)), static_argnums=4)
    found, exact = compiled(*inputs(), soft_cap), of_cross_entropy(*inputs(), soft_cap=soft_cap)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=ONE_OP, rtol=ONE_OP), found, exact)


@pytest.mark.parametrize("above", [0.0, 200.0])  # by how much one device's logits are larger than the first ones
def test_a_sharded_vocabulary_gives_a_tpu_the_same_loss(above: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, targets, weights = inputs()
    hidden, targets, weights = (x[:, :12] for x in (hidden.at[..., 0].set(1), targets, weights))
    head = head.at[V // 2 + 5 :, 0].add(above)
    mesh = Mesh(np.array(jax.devices()[:2]), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))

    def loss(h: Array, w: Array) -> Array:
        return cross_entropy(h, w, targets, weights)

    specs = P(None, "tensor"), P("tensor")
    sharded = jax.shard_map(
        jax.value_and_grad(loss, (0, 1)), mesh=mesh, in_specs=specs, out_specs=(P(), specs), check_vma=False
    )
    exact = of_cross_entropy(hidden, head, targets, weights)
    monkeypatch.setattr(sums, "platform", lambda: "tpu")
    monkeypatch.setattr(sums, "NUM_FIRST", 2)
    for found, wanted in zip(*map(jax.tree.leaves, (jax.jit(sharded)(hidden, head), exact)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=ONE_OP * max(1.0, float(jnp.abs(wanted).max())), rtol=1e-5)


@partial(jax.jit, static_argnames=("form", "block"))
def of_sums(hidden: Array, head: Array, targets: Array, weights: Array, form: tuple[Any, ...], block: int) -> Any:
    """The loss with its gradients and both metrics, and all three from the forward pass alone."""

    def loss(hidden: Array, head: Array) -> tuple[Array, tuple[Array, ...]]:
        value, *metrics = cross_entropy_and_metrics(hidden, head, targets, weights, *form)
        return value, tuple(metrics)

    with in_blocks(block):
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head), loss(hidden, head)


@pytest.mark.parametrize(
    ("chunks", "soft_cap", "z_weight"),
    [(1, None, 0.0), (1, 2.0, 0.1), pytest.param(5, None, 0.1, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("every", [*(pytest.param(every, marks=pytest.mark.slow) for every in (1, B * T + 1)), 3])
def test_sums_over_positions_with_weight_are_those_over_all(
    every: int, chunks: int, soft_cap: float | None, z_weight: float
) -> None:
    hidden, head, targets, _ = inputs()
    weights = jnp.where((jnp.arange(B * T).reshape(B, T) + 1) % every == 0, 1.5, 0.0)
    args, block = (hidden, head, targets, weights), 4 // chunks + 1
    ((value, metrics), grads), alone = of_sums(*args, form=(soft_cap, chunks, z_weight), block=block)
    exact = of_cross_entropy(*args, block=block, soft_cap=soft_cap, chunks=chunks, z_weight=z_weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3 * ONE_OP, rtol=1e-5), (value, grads), exact)
    np.testing.assert_allclose(alone[0], exact[0], atol=3 * ONE_OP, rtol=1e-5)
    logits = soft_capped(jnp.einsum("btd,vd->btv", hidden, head, precision="highest"), soft_cap)
    entropies = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1)
    right = logits.argmax(-1) == targets
    for entropy, accuracy in (metrics, alone[1]):
        np.testing.assert_allclose(entropy, (weights * entropies).sum(), atol=3 * ONE_OP, rtol=1e-5)
        np.testing.assert_allclose(accuracy, (weights * right).sum(), atol=3 * ONE_OP)
