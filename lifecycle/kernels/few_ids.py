"""The divergence of a student from a teacher of which a few ids are known at each position.

Two ways to make distributions of log-probabilities that do not add up to 1: what is left is one more outcome, the
tail, or they are normalised. Definitions and the bound are those of TRL 1.16 (`loss_add_tail`); of whole vocabularies
both give the divergence itself.
"""

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float
from lifecycle.kernels.divergence import LEFT_OUT, log_terms

LARGEST_LOG_SUM = -1e-7  # of the ids' probabilities: a tail of 0 has no logarithm


def few_ids_divergence(
    log_q: Float[Array, "B T kept"],
    log_p: Float[Array, "B T kept"],
    known: Bool[Array, "B T kept"],
    beta: float,
    add_tail: bool,
) -> Float[Array, "B T"]:
    """The generalised Jensen-Shannon divergence of `q`, the student's distribution, from `p` (`kernels/divergence.py`),
    in nats, over the `known` ids. Differentiable in `log_q`, which without a tail may lack any normaliser."""
    complete = _with_tail if add_tail else _normalised
    q, p = (complete(jnp.where(known, logprobs, LEFT_OUT)) for logprobs in (log_q, log_p))
    return log_terms(beta, q, p)[0].sum(-1)


def _with_tail(logprobs: Array) -> Array:
    log_sum = jnp.minimum(jax.nn.logsumexp(logprobs, axis=-1, keepdims=True), LARGEST_LOG_SUM)
    return jnp.concatenate([logprobs, jnp.log(-jnp.expm1(log_sum))], axis=-1)


def _normalised(logprobs: Array) -> Array:
    return logprobs - jax.nn.logsumexp(logprobs, axis=-1, keepdims=True)
