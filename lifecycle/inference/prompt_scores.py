"""Log-probabilities of a prompt's tokens, for requests that ask for them."""

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.inference.sampling import Sampled, no_tokens, only_ids, top_logprobs
from lifecycle.kernels.seldom import seldom
from lifecycle.model.config import ModelConfig
from lifecycle.model.embedding import logits
from lifecycle.model.params import Params

ROWS = 16  # positions whose logits exist at once; divides the length of every chunk


def score_prompt(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "T D"],
    following: Int[Array, " T"],
    is_wanted: Bool[Array, ""],
    num_ids: int,
) -> Sampled:
    """The tokens `following` each position of a chunk, `[1, T]`, as if they had been sampled; none unless `is_wanted`,
    which all devices have alike. Ids from `num_ids` on are impossible, as in sampling."""

    def one_block(block: tuple[Array, Array]) -> Sampled:
        rows, ids = block
        logprobs = only_ids(jax.nn.log_softmax(logits(config, params, rows)), num_ids)
        values, top_ids = top_logprobs(logprobs)
        return Sampled(ids, jnp.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0], top_ids, values)

    def all_blocks(number: Array, scored: Sampled) -> Sampled:
        del number, scored
        blocks = (hidden.reshape(-1, ROWS, hidden.shape[-1]), following.reshape(-1, ROWS))
        return jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), jax.lax.map(one_block, blocks))

    return seldom(is_wanted.astype(jnp.int32), all_blocks, no_tokens((1, following.size)))
