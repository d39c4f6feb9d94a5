"""The generalised Jensen-Shannon divergence of a student from a teacher, in blocks: logits `[B, T, V]` never exist.

For a teacher's distribution `p`, a student's `q` and `m = beta p + (1 - beta) q` it is `beta KL(p||m) + (1 - beta)
KL(q||m)`; `beta` 0 stands for the forward `KL(p||q)` and 1 for the reverse `KL(q||p)` (Agarwal et al. 2024, "On-Policy
Distillation of Language Models", equation 1 and section 3; the names of the ends are TRL's). Each model has a head of
its own over one vocabulary, and its own width. Only the student has gradients; they are computed in the forward pass,
by the same logits. At a vocabulary of 151,936 and 16,384 positions the program takes less than half a gigabyte beside
its arguments and results.

With `chunks` of the vocabulary there are three passes over them: normalisers, divergences, gradients. Each makes the
logits again; blocks have as many more positions, and the student's full gradient of the head is never in memory.

In a manual `jax.shard_map` the hidden states' positions are sharded over `norm_seq` and both heads' rows over `vocab`;
results are replicated over these axes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Float
from lifecycle.kernels.logits import project
from lifecycle.kernels.row_blocks import of_rows, row_blocks
from lifecycle.kernels.vocabulary import BLOCK, chunks_of, gathered_table
from lifecycle.parallel.collectives import all_gather, axis_index, axis_size, pmax, psum, reduce_scatter

MOST_LOGITS = 2**24  # of a block, of each model: 67 MB in float32, and there are four to six such arrays
LEFT_OUT = -1e9  # a logit of an id that does not count; its square is finite


class Predictions(NamedTuple):
    """A model's hidden states and its output projection; on a mesh, this device's shards."""

    hidden: Float[Array, "B t columns"]
    table: Float[Array, "V ..."]
    soft_cap: float | None = None


class Divergence(NamedTuple):
    """Which divergence: `beta` as above, both models' logits divided by `temperature`; with `num_ids`, of the
    distributions over the first ids alone."""

    beta: float
    temperature: float = 1.0
    num_ids: int | None = None


def divergence(
    student: Predictions, teacher: Predictions, weights: Float[Array, "B T"], of: Divergence, chunks: int = 1
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum over positions of the divergences times `weights`, and that of the student's entropies (without a
    gradient), in nats, both at the temperature. Differentiable in the student's hidden states and table; the other
    arrays are data. `chunks` must divide a device's part of the vocabulary."""
    form = _Form(of, student.soft_cap, teacher.soft_cap, chunks)
    own, others = (all_gather(side.hidden, "norm_seq", 1) for side in (student, teacher))
    loss, entropies = _divergence(own, student.table, others, teacher.table, weights, form)
    return loss, jax.lax.stop_gradient(entropies)


def log_terms(
    beta: float, log_q: Float[Array, "*ids"], log_p: Float[Array, "*ids"]
) -> tuple[Float[Array, "*ids"], Float[Array, "*ids"]]:
    """Each id's part of the divergence, and `q` times the derivative of the divergence in `q`, but for a constant,
    which the softmax's gradient does not see."""
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    if beta == 0:
        return p * (log_p - log_q), -p
    if beta == 1:
        values = q * (log_q - log_p)
        return values, values
    log_m = jnp.logaddexp(log_q + jnp.log1p(-beta), log_p + jnp.log(beta))
    of_q = (1 - beta) * q * (log_q - log_m)
    return of_q + beta * p * (log_p - log_m), of_q


class _Form(NamedTuple):
    """What decides the program."""

    of: Divergence
    soft_cap: float | None
    teacher_soft_cap: float | None
    chunks: int

    def student(self, rows: Array, head: Array, first: Array | int) -> Array:
        return self._of_ids(project(rows, head, self.soft_cap), first)

    def teacher(self, rows: Array, head: Array, first: Array | int) -> Array:
        return self._of_ids(project(rows, head, self.teacher_soft_cap), first)

    def _of_ids(self, logits: Array, first: Array | int) -> Array:
        """At the temperature; `first` is the first id of this part of the head."""
        logits = logits / self.of.temperature
        if self.of.num_ids is None:
            return logits
        return jnp.where(first + jnp.arange(logits.shape[-1]) < self.of.num_ids, logits, LEFT_OUT)

    def in_products(self, grad: Array, logits: Array) -> Array:
        """From a gradient in the student's logits to one in the products that they are made of."""
        grad = grad / self.of.temperature
        if self.soft_cap is None:
            return grad
        return grad * (1 - (logits * (self.of.temperature / self.soft_cap)) ** 2)


class _Rows(NamedTuple):
    """Blocks of positions, `[blocks, rows, ...]`, or one of them."""

    student: Array
    teacher: Array
    weights: Array


def _block_rows(hidden: Array, teacher: Array, table: Array, weights: Array, chunks: int) -> _Rows:
    most = MOST_LOGITS // (table.shape[0] // chunks)
    size = min(BLOCK[hidden.dtype.name] * chunks, max(8, most // 8 * 8))
    return _Rows(*(row_blocks(x, size) for x in (hidden, teacher, weights)))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _divergence(
    hidden: Array, table: Array, teacher: Array, teacher_table: Array, weights: Array, form: _Form
) -> tuple[Array, Array]:
    rows = _block_rows(hidden, teacher, table, weights, form.chunks)
    passes = _in_one_pass if form.chunks == 1 else _in_three_passes
    return passes(rows, table, teacher_table, form, False)[0]


def _forward(
    hidden: Array, table: Array, teacher: Array, teacher_table: Array, weights: Array, form: _Form
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    rows = _block_rows(hidden, teacher, table, weights, form.chunks)
    passes = _in_one_pass if form.chunks == 1 else _in_three_passes
    sums, grads = passes(rows, table, teacher_table, form, True)
    assert grads is not None
    grad_rows, grad_table = grads
    return sums, (of_rows(grad_rows, weights.shape).astype(hidden.dtype), grad_table.astype(table.dtype))


type _Found = tuple[tuple[Array, Array], tuple[Array, Array] | None]  # both sums; gradients in rows and table


def _in_one_pass(blocks: _Rows, table: Array, teacher_table: Array, form: _Form, has_gradient: bool) -> _Found:
    head = gathered_table(table, blocks.student.dtype)
    teacher_head = gathered_table(teacher_table, blocks.teacher.dtype)
    first = axis_index("vocab") * table.shape[0]

    def step(carry: tuple[Array, Array, Array | None], block: _Rows) -> tuple[Any, Array | None]:
        total, entropies, grad_head = carry
        logits, weights = form.student(block.student, head, first), block.weights[:, None]
        log_q, log_p = _log_softmax(logits), _log_softmax(form.teacher(block.teacher, teacher_head, first))
        values, slopes = log_terms(form.of.beta, log_q, log_p)
        q = jnp.exp(log_q)
        total += psum((weights * values).sum(), "vocab")
        entropies -= psum((weights * q * log_q).sum(), "vocab")
        if grad_head is None:
            return (total, entropies, None), None
        grad = weights * (slopes - q * psum(slopes.sum(-1, keepdims=True), "vocab"))
        grad = form.in_products(grad, logits).astype(block.student.dtype)
        return (total, entropies, grad_head + _outer(grad, block.student)), grad @ head

    zero = jnp.zeros((), jnp.float32)
    begun = zero, zero, jnp.zeros(head.shape, jnp.float32) if has_gradient else None
    (total, entropies, grad_head), grad_rows = jax.lax.scan(step, begun, blocks)
    if grad_head is None or grad_rows is None:
        return (total, entropies), None
    return (total, entropies), (grad_rows, reduce_scatter(grad_head.astype(blocks.student.dtype), "embed", 1))


def _outer(grad: Array, rows: Array) -> Array:
    return jax.lax.dot_general(grad, rows, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - pmax(logits.max(-1, keepdims=True), "vocab")
    return shifted - jnp.log(psum(jnp.exp(shifted).sum(-1, keepdims=True), "vocab"))


class _Chunk(NamedTuple):
    """A chunk of both heads, `[ids, D]`, or `[D, ids]` as they were gathered, and its first id."""

    student: Array
    teacher: Array
    first: Array


def _in_three_passes(blocks: _Rows, table: Array, teacher_table: Array, form: _Form, has_gradient: bool) -> _Found:
    is_cut = axis_size("embed") > 1
    (parts, firsts), (theirs, _) = chunks_of(table, form.chunks), chunks_of(teacher_table, form.chunks)
    heads = _Chunk(_heads(parts, blocks.student.dtype), _heads(theirs, blocks.teacher.dtype), firsts)

    def both(rows: _Rows, chunk: _Chunk) -> tuple[Array, Array]:
        head, teacher_head = (part.T if is_cut else part for part in (chunk.student, chunk.teacher))
        return form.student(rows.student, head, chunk.first), form.teacher(rows.teacher, teacher_head, chunk.first)

    def over_chunks(add: Callable[..., Array], begun: Array, *kept: Array) -> Array:
        """What `add` makes of each block's numbers, chunk after chunk."""

        def one_chunk(numbers: Array, chunk: _Chunk) -> tuple[Array, None]:
            return jax.lax.map(lambda block: add(chunk, *block), (numbers, blocks, *kept)), None

        return jax.lax.scan(one_chunk, begun, heads)[0]

    def add_norms(chunk: _Chunk, running: Array, rows: _Rows) -> Array:
        return jnp.stack([_with_logits(*pair) for pair in zip(running, both(rows, chunk), strict=True)])

    zeros = jnp.zeros(blocks.weights.shape, jnp.float32)
    begun = jnp.stack([zeros - jnp.inf, zeros], axis=1)  # largest logit, sum of exponentials after it
    norms = over_chunks(add_norms, jnp.stack([begun, begun], axis=1))  # [blocks, models, 2, rows]
    top = pmax(norms[:, :, 0], "vocab")
    norms = jnp.stack([top, jnp.log(psum(norms[:, :, 1] * jnp.exp(norms[:, :, 0] - top), "vocab"))], axis=2)

    def logprobs(logits: tuple[Array, Array], norms: Array) -> tuple[Array, ...]:
        """Shifted first: the sum of both numbers would lose digits of large logits."""
        return tuple(own - top[:, None] - log[:, None] for own, (top, log) in zip(logits, norms, strict=True))

    def add_terms(chunk: _Chunk, sums: Array, rows: _Rows, norms: Array) -> Array:
        log_q, log_p = logprobs(both(rows, chunk), norms)
        parts = (*log_terms(form.of.beta, log_q, log_p), -jnp.exp(log_q) * log_q)
        return sums + jnp.stack([part.sum(-1) for part in parts])

    found = psum(over_chunks(add_terms, jnp.zeros((len(zeros), 3, zeros.shape[1])), norms), "vocab")
    sums = (blocks.weights * found[:, 0]).sum(), (blocks.weights * found[:, 2]).sum()
    if not has_gradient:
        return sums, None

    def grad_chunk(grad_rows: Array, chunk: _Chunk) -> tuple[Array, Array]:
        head = chunk.student.T if is_cut else chunk.student

        def one_block(grad_head: Array, block: tuple[Array, _Rows, Array, Array]) -> tuple[Array, Array]:
            grad_rows, rows, norms, slope = block
            logits = both(rows, chunk)
            log_q, log_p = logprobs(logits, norms)
            grad = log_terms(form.of.beta, log_q, log_p)[1] - jnp.exp(log_q) * slope[:, None]
            grad = form.in_products(rows.weights[:, None] * grad, logits[0]).astype(rows.student.dtype)
            grad_rows += jnp.dot(grad, head, preferred_element_type=jnp.float32)
            return grad_head + _outer(grad, rows.student), grad_rows

        begun = jnp.zeros(head.shape, jnp.float32)
        grad_head, grad_rows = jax.lax.scan(one_block, begun, (grad_rows, blocks, norms, found[:, 1]))
        return grad_rows, reduce_scatter(grad_head.astype(rows_dtype), "embed", 1)

    rows_dtype = blocks.student.dtype
    grad_rows, grad_parts = jax.lax.scan(grad_chunk, jnp.zeros(blocks.student.shape, jnp.float32), heads)
    return sums, (grad_rows, grad_parts.reshape(table.shape))


def _heads(parts: Array, dtype: Any) -> Array:
    """A head's chunks, `[chunks, ids, D]`; gathered, if its columns are on several devices, as `[chunks, D, ids]`: of
    that layout there is no transposed copy."""
    if axis_size("embed") == 1:
        return parts.astype(dtype)
    return jax.lax.map(lambda part: gathered_table(part, dtype).T, parts)


def _with_logits(running: Array, logits: Array) -> Array:
    """The largest logit and the sum of exponentials after it, with more logits."""
    top = jnp.maximum(running[0], logits.max(-1))
    return jnp.stack([top, running[1] * jnp.exp(running[0] - top) + jnp.exp(logits - top[:, None]).sum(-1)])


def _backward(form: _Form, saved: tuple[Array, Array], grads: tuple[Array, Array]) -> tuple[Any, ...]:
    (grad_hidden, grad_table), grad = saved, grads[0]
    return (
        (grad_hidden * grad).astype(grad_hidden.dtype),
        (grad_table * grad).astype(grad_table.dtype),
        None,
        None,
        None,
    )


_divergence.defvjp(_forward, _backward)
