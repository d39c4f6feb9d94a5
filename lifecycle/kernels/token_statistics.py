"""Each target's log-probability, and what else is asked of the model's distribution at a position, in blocks.

Logits of shape `[B, T, V]` never exist, in the forward pass or the backward one: at a vocabulary of 151,936 and 16,384
positions the program takes less than half a gigabyte beside its arguments and results. What must hold: the gradients
are those of the plain formulas. One of log-probabilities and entropies needs the logits a second time, four products in
all; `kernels/cross_entropy.py` needs three, for a sum of log-probabilities whose weights are known beforehand.

In a manual `jax.shard_map` the hidden states' positions are sharded over `norm_seq` and the head's rows over `vocab`;
results are replicated over these axes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.kernels.quantised import QuantisedTable
from lifecycle.kernels.row_blocks import Asked, asked_first, of_rows, row_blocks
from lifecycle.kernels.vocabulary import (
    BLOCK,
    Coefficients,
    LogitSums,
    first_pass,
    gathered_table,
    second_pass,
)
from lifecycle.parallel.collectives import all_gather

MOST_LOGITS = 2**25  # of a block: 134 MB in float32, and the backward pass has three such arrays


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenStatistics:
    """What is known of each position's distribution, `[B, T]` in float32; logarithms in nats.

    `logprobs` (the target's) and `entropies` have gradients, the others none: `log_squares` is the log of the sum of
    the squared probabilities, `mean_logits` the mean logit, `is_top1` 1 if the target is among the likeliest ids.
    """

    logprobs: Float[Array, "B T"]
    entropies: Float[Array, "B T"]
    log_squares: Float[Array, "B T"]
    mean_logits: Float[Array, "B T"]
    is_top1: Float[Array, "B T"]


def token_statistics(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"] | QuantisedTable,
    targets: Int[Array, "B T"],
    soft_cap: float | None = None,
    chunks: int = 1,
    temperature: float = 1.0,
    wanted: Bool[Array, "B T"] | None = None,
) -> TokenStatistics:
    """The statistics of each target; differentiable in `hidden` and a plain `table`. `chunks` of the vocabulary save
    memory: no array is larger than one. `temperature`: logits are divided by it, as a sampler does. `wanted`: the
    others are zero, and cost nothing. What is not used is not computed."""
    if temperature != 1:  # cap * tanh(l / cap) / t is the logit l / t with the cap / t
        hidden = (hidden.astype(jnp.float32) / temperature).astype(hidden.dtype)
        soft_cap = None if soft_cap is None else soft_cap / temperature
    logprobs, further = _of_any_table(hidden, table, targets, wanted, _Form(soft_cap, chunks, True))
    assert further is not None
    entropies, *constant = further
    return TokenStatistics(logprobs, entropies, *jax.lax.stop_gradient(constant))


def token_logprobs(
    hidden: Float[Array, "B t D"],
    table: Float[Array, "V columns"] | QuantisedTable,
    targets: Int[Array, "B T"],
    soft_cap: float | None = None,
    chunks: int = 1,
) -> Float[Array, "B T"]:
    """Log-probability of each target: `token_statistics` without the rest."""
    return _of_any_table(hidden, table, targets, None, _Form(soft_cap, chunks, False))[0]


type _Found = tuple[Array, tuple[Array, ...] | None]  # log-probabilities, and the other statistics if wanted


class _Form(NamedTuple):
    """What decides the program."""

    soft_cap: float | None
    chunks: int
    is_full: bool


def _of_any_table(hidden: Array, table: Any, targets: Array, wanted: Array | None, form: _Form) -> _Found:
    hidden = all_gather(hidden, "norm_seq", 1)
    asked = None if wanted is None else asked_first(wanted)
    if not isinstance(table, QuantisedTable):
        return _differentiable(hidden, table, targets, asked, form)
    scale = gathered_table(table.scale, table.scale.dtype) if table.scale.shape[1] > 1 else table.scale
    table = QuantisedTable(gathered_table(table.values, table.values.dtype), scale)
    form = form._replace(chunks=1)
    return _statistics(_sums(hidden, table, targets, asked, form), targets, asked)


def _block_size(hidden: Array, table: Array | QuantisedTable, chunks: int) -> int:
    """Positions in a block: as many more as there are chunks, while their logits are not too many."""
    most = MOST_LOGITS // (table.shape[0] // chunks)
    return min(BLOCK[hidden.dtype.name] * chunks, max(8, most // 8 * 8))


def _sums(hidden: Array, table: Any, targets: Array, asked: Asked | None, form: _Form) -> LogitSums:
    size = _block_size(hidden, table, form.chunks)
    rows = row_blocks(hidden, size, asked), row_blocks(targets, size, asked)
    return first_pass(*rows, table, form.soft_cap, form.chunks, form.is_full, asked)[0]


def _statistics(sums: LogitSums, targets: Array, asked: Asked | None) -> _Found:
    logprobs = of_rows(sums.logprobs, targets.shape, asked)
    if sums.moments is None:
        return logprobs, None
    is_top1 = (sums.chosen >= sums.moments.top).astype(jnp.float32)
    found = (sums.log_norm - sums.moments.mean, sums.moments.log_squares, sums.moments.plain_mean, is_top1)
    return logprobs, tuple(of_rows(values, targets.shape, asked) for values in found)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _differentiable(hidden: Array, table: Array, targets: Array, asked: Asked | None, form: _Form) -> _Found:
    return _statistics(_sums(hidden, table, targets, asked, form), targets, asked)


def _forward(
    hidden: Array, table: Array, targets: Array, asked: Asked | None, form: _Form
) -> tuple[_Found, tuple[Any, ...]]:
    sums = _sums(hidden, table, targets, asked, form)
    mean = None if sums.moments is None else sums.moments.mean
    return _statistics(sums, targets, asked), (hidden, table, targets, asked, sums.log_norm, mean)


def _backward(form: _Form, saved: tuple[Any, ...], grads: _Found) -> tuple[Array, Array, None, None]:
    """Of a log-probability `[target] - p`, of an entropy `-p * (l - mean)`, in a logit `l`: the entropy is
    `log Z - mean`, the mean being under the softmax."""
    hidden, table, targets, asked, log_norm, mean = saved
    size = _block_size(hidden, table, form.chunks)
    of_logprob = _blocks_of_asked(grads[0], size, asked)
    terms = Coefficients(-of_logprob, of_logprob)
    if grads[1] is not None:
        of_entropy = _blocks_of_asked(grads[1][0], size, asked)
        terms = Coefficients(of_entropy * mean - of_logprob, of_logprob, -of_entropy)
    rows = row_blocks(hidden, size, asked), row_blocks(targets, size, asked)
    grad_rows, grad_table = second_pass(
        *rows, table, log_norm, terms, form.soft_cap, form.chunks, heads=None, asked=asked
    )
    return of_rows(grad_rows, targets.shape, asked).astype(hidden.dtype), grad_table, None, None


def _blocks_of_asked(values: Array, size: int, asked: Asked | None) -> Array:
    """Values of positions in blocks, zero where nobody asked."""
    if asked is not None:
        values = jnp.where((asked.places < asked.number).reshape(values.shape), values, 0)
    return row_blocks(values, size, asked)


_differentiable.defvjp(_forward, _backward)
