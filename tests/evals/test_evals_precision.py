"""In bfloat16 the engine, the scorer and the trainer compute the same model: weights in use, the few in float32 too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.typing import Array
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.kernels.token_statistics import token_logprobs
from lifecycle.model.config import ModelConfig, MoeConfig
from lifecycle.model.decoder import forward_train
from lifecycle.model.embedding import head
from lifecycle.model.params import Params, params_in_use
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.models import random_model
from lifecycle.training.scoring import logprobs, measured_pieces

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

PROMPT = list(range(65, 85))
ROUNDING = 0.02  # of bfloat16 sums in another order: rows of other lengths, and a cache, block their keys differently


def narrow_model() -> Model:
    """All that stays in float32 is there: norm scales, routers with their biases, sinks; each different from its fresh
    value in more bits than bfloat16 has."""
    moe = MoeConfig(num_experts=8, experts_per_token=2, d_ff=32, use_bias=True, use_selection_bias=True)
    model = random_model(
        moe=moe, use_sinks=True, activation="clamped", layer_pattern=("local", "global"), window=6, max_seq_len=64,
        compute_dtype="bfloat16",
    )  # fmt: skip
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda array: array + 0.1 * draw.standard_normal(array.shape, np.float32), model.params)
    return Model(model.config, params, model.tokenizer, model.template)


@partial(jax.jit, static_argnums=0)
def trained_logprobs(config: ModelConfig, params: Params, tokens: Array) -> Array:
    """What an objective sees of one row: log-probabilities of each next token."""
    positions = jnp.arange(tokens.shape[1] - 1)[None]
    hidden, _ = forward_train(config, params, tokens[:, :-1], positions, jnp.ones_like(positions))
    return token_logprobs(hidden, head(config, params), tokens[:, 1:], config.logits_soft_cap)[0]


@pytest.mark.long
def test_engine_scorer_and_trainer_agree_in_bfloat16() -> None:
    model, greedy = narrow_model(), SamplingParams(temperature=0.0, max_tokens=20, stop_ids=())
    (completion,) = generate(model, [PROMPT], greedy, num_slots=2)
    generated = np.array([token.logprob for token in completion.tokens])
    ids = np.array([*PROMPT, *completion.token_ids], np.int32)
    trained = np.asarray(trained_logprobs(model.config, model.params, jnp.asarray(ids)[None]))
    used = params_in_use(model.config, model.params)
    (scored,) = measured_pieces(logprobs, model.config, used, [ids], 64, build_mesh(MeshConfig()))
    np.testing.assert_allclose(scored, trained, atol=ROUNDING, rtol=0)
    np.testing.assert_allclose(generated, trained[len(PROMPT) - 1 :], atol=ROUNDING, rtol=0)
    narrow = jax.tree.map(lambda array: array.astype(jnp.bfloat16), model.params)  # not in use: all of them rounded
    rounded = trained_logprobs(model.config, narrow, jnp.asarray(ids)[None])
    assert np.abs(rounded - trained).max() > ROUNDING
