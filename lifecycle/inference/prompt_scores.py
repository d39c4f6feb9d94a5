"""Log-probabilities of a prompt's tokens, for requests that ask for them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.inference.sampling import MAX_TOP_LOGPROBS, only_ids, top_logprobs
from lifecycle.kernels.seldom import seldom
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import logits
from lifecycle.model.params import Params

ROWS = 16  # positions whose logits exist at once; divides the length of every chunk


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptScores:
    """Of the token after each position of the groups' chunks, `[G, T]`: its log-probability, and the likeliest ones."""

    logprob: Float[Array, "*rows"]
    top_ids: Int[Array, "*rows 20"]
    top_logprobs: Float[Array, "*rows 20"]


def score_prompt(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "T D"],
    following: Int[Array, " T"],
    is_wanted: Bool[Array, ""],
    num_ids: int,
) -> PromptScores:
    """The scores of the tokens `following` each position of a chunk, as a group of one; zeros unless `is_wanted`, which
    all devices have alike. Ids from `num_ids` on are impossible, as in sampling."""

    def one_block(block: tuple[Array, Array]) -> PromptScores:
        rows, ids = block
        logprobs = only_ids(jax.nn.log_softmax(logits(config, params, rows)), num_ids)
        values, top_ids = top_logprobs(logprobs)
        return PromptScores(jnp.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0], top_ids, values)

    def all_blocks(number: Array, scores: PromptScores) -> PromptScores:
        del number, scores
        blocks = (hidden.reshape(-1, ROWS, hidden.shape[-1]), following.reshape(-1, ROWS))
        return jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), jax.lax.map(one_block, blocks))

    shape = (1, following.size)
    top = (*shape, MAX_TOP_LOGPROBS)
    none = PromptScores(jnp.zeros(shape), jnp.zeros(top, jnp.int32), jnp.zeros(top))
    return seldom(is_wanted.astype(jnp.int32), all_blocks, none)
