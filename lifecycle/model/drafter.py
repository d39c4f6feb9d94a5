"""A head that drafts tokens for a frozen decoder, its target (Li et al. 2025, "EAGLE-3").

One block. At position `i` it sees what the target computed there (the inputs of three layers, projected to one
feature) and the embedding of token `i + 1`. Its output is a feature too: the target's head, or some of its rows, makes
the draft of token `i + 2` from it, and it takes the target's place at the next position. As a step's output is the next
one's input, training unrolls several steps (the paper's training-time test): `Unrolled` has the target's features at
all positions up to the query's, and the drafter's own after that.

The published implementations fix the rest (SafeAILab/EAGLE `traineagle3/cnets.py`, vLLM's and SGLang's
`llama_eagle3.py`): embedding and feature have norms of their own, attention takes them side by side, embedding first,
and the residual sum goes on from the feature without the norm.

What must hold: the target computes the same with a drafter and without.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from lifecycle.core.typing import Array, Bool, Float
from lifecycle.kernels.attention import as_group_rows, attention, from_group_rows, seen_by_rows
from lifecycle.kernels.linear import linear
from lifecycle.kernels.mask import MASKED, Mask
from lifecycle.model.cache import Attending
from lifecycle.model.config import ModelConfig
from lifecycle.model.layers import Angles, Attention, DenseFeedForward, Normed, full_row, hidden_norm
from lifecycle.model.parameter import matrix, normal, vector

VOCABULARY = "vocabulary"  # the drafts' ids and the target's rows for them: no gradient trains these
NUM_TAKEN = 3  # layers whose inputs make a feature


def block_config(config: ModelConfig) -> ModelConfig:
    """The drafter of a model as a decoder of one layer: its sizes, its published config, and that of its KV cache."""
    drafter = config.drafter
    assert drafter is not None
    return ModelConfig(
        vocab_size=drafter.vocab_size or config.vocab_size,
        d_model=config.d_model,
        d_ff=drafter.d_ff or config.d_ff,
        num_layers=1,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_seq_len=config.max_seq_len,
        rope_theta=config.rope_theta,
        rope_scaling=config.rope_scaling,
        norm_eps=config.norm_eps,
        compute_dtype=config.compute_dtype,
    )


class Drafter(nnx.Module):
    """The block, the projection before it and the norm behind it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        c = block_config(config)
        self.projection = matrix(rngs, (NUM_TAKEN * c.d_model, c.d_model), ("embed", None))
        self.embed_norm = hidden_norm(c)
        self.hidden_norm = hidden_norm(c)
        self.attention = Attention(c, rngs, 2 * c.d_model)
        self.feed_forward_norm = hidden_norm(c)
        self.feed_forward = DenseFeedForward(c, rngs)
        self.norm = hidden_norm(c)

    def feature(self, taken: Float[Array, "B t columns"]) -> Float[Array, "B t D"]:
        """The target's feature, from the inputs of its three layers side by side."""
        return linear(taken, self.projection[...])

    def __call__[C: Attending](
        self, feature: Float[Array, "B t D"], embedded: Float[Array, "B t D"], angles: Angles, mask: Mask, cache: C
    ) -> tuple[Float[Array, "B t D"], C]:
        """The next feature, and the cache with the new tokens."""
        both = jnp.concatenate([self.embed_norm(embedded), self.hidden_norm(feature)], axis=-1)
        _, attended, cache = self.attention(Normed(both, None), angles, mask, cache)
        x, fed = self.feed_forward(Normed(feature + attended, self.feed_forward_norm))
        return x + fed, cache


class DraftVocabulary(nnx.Module):
    """The ids that a drafter of fewer tokens than its target can draft, and the rows of the target's head for them."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        c = block_config(config)
        self.head = normal(rngs, (c.vocab_size, c.d_model), ("vocab", "embed"), c.d_model**-0.5, fan_in=-1)
        # whole numbers, exact below 2^24: every array of a model is of floats
        self.ids = vector((c.vocab_size,), (None,), is_float32=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Unrolled:
    """The keys and values of the steps so far, over whole rows; takes the place of a layer's cache in training.

    The first step's are the target's features, of which a query sees those that `mask` allows. The others are the
    drafter's own: at each position of the row a sequence of its own, of which a query sees the ones at its place.
    """

    mask: Mask
    keys: tuple[Float[Array, "B T K Dh"], ...] = ()
    values: tuple[Float[Array, "B T K Dh"], ...] = ()

    def attend(
        self, q: Float[Array, "B T H Dh"], k: Float[Array, "B T K Dh"], v: Float[Array, "B T K Dh"], **options: None
    ) -> "tuple[Float[Array, 'B T H Dh'], Unrolled]":
        """Adds a step's keys and values, and attends to all steps' so far."""
        assert not any(value is not None for value in options.values()), f"a drafter's block has no {options}"
        steps = replace(self, keys=(*self.keys, k), values=(*self.values, v))
        if not self.keys:
            return attention(q, full_row(k), full_row(v), self.mask), steps
        return unrolled_attention(q, steps.keys, steps.values, self.mask.dense()), steps


def unrolled_attention(
    q: Float[Array, "B T H Dh"],
    keys: tuple[Float[Array, "B T K Dh"], ...],
    values: tuple[Float[Array, "B T K Dh"], ...],
    seen: Bool[Array, "B T T"],
) -> Float[Array, "B T H Dh"]:
    """Attention to the first step's keys as far as `seen`, and to the later steps' at the query's place; one softmax
    over both. All scores exist at once."""
    length, groups = q.shape[1], keys[0].shape[2]
    per_group = q.shape[2] // groups
    rows = as_group_rows(q * q.shape[-1] ** -0.5, groups)  # [B, K, T * G, D]
    first_key, first_value = keys[0].swapaxes(1, 2), values[0].swapaxes(1, 2)
    scores = jnp.einsum("bkrd,bksd->bkrs", rows, first_key, preferred_element_type=jnp.float32)
    scores = jnp.where(seen_by_rows(seen, per_group), scores, MASKED)

    def of_rows(later: tuple[Array, ...]) -> Array:  # [steps, B, K, T * G, D]
        return jnp.repeat(jnp.stack(later).swapaxes(2, 3), per_group, axis=3)

    own_keys, own_values = of_rows(keys[1:]), of_rows(values[1:])
    own = jnp.einsum("bkrd,nbkrd->bkrn", rows, own_keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.concatenate([scores, own], axis=-1), axis=-1).astype(q.dtype)
    out = jnp.einsum("bkrs,bksd->bkrd", weights[..., : scores.shape[-1]], first_value)
    out += jnp.einsum("bkrn,nbkrd->bkrd", weights[..., scores.shape[-1] :], own_values)
    return from_group_rows(out, length)
