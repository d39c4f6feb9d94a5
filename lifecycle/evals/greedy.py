"""Whether a continuation is the model's greedy one, from one scoring pass.

A continuation is greedy if each of its ids has the largest logit after the context and the ids before it; of equal
logits the first counts, as for `argmax`. This is lm-evaluation-harness's `is_greedy` (`HFLM._loglikelihood_tokens`:
`(greedy_tokens == cont_toks).all()`), its `acc` of a task of output type `loglikelihood`.
"""

import math
from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lifecycle.core.typing import Array, Float, Int
from lifecycle.evals.subject import Pair
from lifecycle.model.config import ModelConfig
from lifecycle.model.embedding import logits
from lifecycle.model.params import Params
from lifecycle.parallel.collectives import all_gather
from lifecycle.training.scoring import Measure, measured_continuations

BLOCK = 256  # positions whose logits exist at once


def greedy_loglikelihoods(
    config: ModelConfig, params: Params, pairs: Sequence[Pair], mesh: Mesh, num_ids: int
) -> list[tuple[float, bool]]:
    """log p(continuation | context) in nats, and whether the continuation is greedy; see `measured_continuations`.

    Ids from `num_ids` on, the vocabulary's padding, are never generated, so none of them is the likeliest.
    """
    scored = measured_continuations(logprob_and_rank(num_ids), config, params, pairs, mesh)
    return list(map(greedy_score, scored))


def greedy_score(values: Float[np.ndarray, "N 2"]) -> tuple[float, bool]:
    """(log-likelihood, is greedy) of a continuation, from `logprob_and_rank` of its tokens."""
    return float(values[:, 0].sum()), bool(values[:, 1].all())


@cache
def logprob_and_rank(num_ids: int) -> Measure:
    """Each target's log-probability, and 1 if it is the likeliest id: `[B, T, 2]`."""

    def measure(
        config: ModelConfig, params: Params, hidden: Float[Array, "B t D"], targets: Int[Array, "B T"]
    ) -> Float[Array, "B T 2"]:
        def block(part: tuple[Array, Array]) -> Array:
            scores, wanted = logits(config, params, part[0]), part[1]
            chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), wanted[:, None], axis=-1)[:, 0]
            likeliest = jnp.where(jnp.arange(scores.shape[-1]) < num_ids, scores, -jnp.inf).argmax(-1)
            return jnp.stack([chosen, likeliest == wanted], axis=-1)

        size = math.gcd(targets.size, BLOCK)  # the logits of all positions would be too large
        blocks = (all_gather(hidden, "norm_seq", 1).reshape(-1, size, hidden.shape[-1]), targets.reshape(-1, size))
        return jax.lax.map(block, blocks).reshape(*targets.shape, 2)

    return measure
