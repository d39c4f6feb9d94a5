"""Scoring against one plain forward a sequence, packed and cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.typing import Array
from lifecycle.inference.engine import ContextLengthError
from lifecycle.inference.model import Model
from lifecycle.inference.scoring import _pack, document_nats, loglikelihoods
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params, forward, logits


@partial(jax.jit, static_argnums=0)
def whole_logprobs(config: ModelConfig, params: Params, tokens: Array) -> Array:
    positions = jnp.arange(tokens.shape[1])[None]
    return jax.nn.log_softmax(logits(config, params, forward(config, params, tokens, positions)))[0]


def plain_logprobs(model: Model, ids: list[int]) -> np.ndarray:
    """log p of each token after the first, in a row of its own."""
    tokens = np.zeros((1, model.config.max_seq_len), np.int32)
    tokens[0, : len(ids) - 1] = ids[:-1]
    found = np.asarray(whole_logprobs(model.config, model.params, tokens), np.float64)
    return found[np.arange(len(ids) - 1), ids[1:]]


def documents(count: int, longest: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size).tolist() for size in rng.integers(2, longest, count)]


def test_loglikelihoods_equal_a_row_of_ones_own(model: Model) -> None:
    pairs = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in [*documents(20, 60), *documents(2, 320)]]
    found = loglikelihoods(model.config, model.params, pairs)
    for (context, rest), value in zip(pairs, found, strict=True):
        expected = plain_logprobs(model, context + rest)[len(context) - 1 :].sum()
        assert value == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


def test_document_nats_predict_each_token_once_in_windows(model: Model) -> None:
    texts = [np.array(ids) for ids in [*documents(10, 30), list(range(200)), [1]]]
    found = document_nats(model.config, model.params, texts, seq_len=32)
    for ids, value in zip(texts, found, strict=True):
        windows = [ids[i : i + 33].tolist() for i in range(0, len(ids) - 1, 32)]
        expected = -sum(plain_logprobs(model, window).sum() for window in windows)
        assert value == pytest.approx(expected, rel=1e-5)


def test_rows_are_packed_tightly_and_shapes_are_few(model: Model) -> None:
    pieces = [np.array(ids) for ids in documents(400, 100)]
    batches = _pack(pieces, model.config.max_seq_len)
    assert {batch.tokens.shape for batch in batches} == {(8, 256)}
    assert sorted(place[0] for batch in batches for place in batch.places) == list(range(400))
    tokens = sum(len(piece) - 1 for piece in pieces)
    assert tokens > 0.9 * sum(batch.tokens.size for batch in batches)


def test_pairs_that_cannot_be_scored_are_named(model: Model) -> None:
    with pytest.raises(ContextLengthError, match="pair 1: 321 tokens; the context holds 320"):
        loglikelihoods(model.config, model.params, [([1], [2]), ([1] * 300, [2] * 22)])
    with pytest.raises(ValueError, match="pair 0: context and continuation"):
        loglikelihoods(model.config, model.params, [([], [2])])
