"""Drafts: the same tokens as without, to the last bit, in fewer steps; and when they are made."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.inference.draft_head import Head
from lifecycle.inference.drafting import LONGEST, NONE, SHORTEST, Ngram, looked_up
from lifecycle.inference.generation import Completion
from lifecycle.inference.model import Model
from lifecycle.inference.speculation import TRY_OTHER, DraftPolicy
from lifecycle.inference.stats import EngineStats
from lifecycle.model.config import DrafterConfig
from lifecycle.model.drafter import VOCABULARY
from lifecycle.model.stacks import DRAFTER
from lifecycle.testing.families import random_params
from tests.inference.drafted import DRAFTS, run

LENGTH = 48


@pytest.fixture(scope="module")
def plain(model: Model) -> tuple[list[Completion], EngineStats]:
    return run(model, None)


def test_tokens_and_log_probabilities_are_those_without_drafts_in_fewer_steps(
    model: Model, plain: tuple[list[Completion], EngineStats]
) -> None:
    found, stats = run(model, Ngram(num_tokens=DRAFTS))
    assert found == plain[0]
    assert stats.decode_tokens == plain[1].decode_tokens
    assert 0 < stats.accepted_tokens < stats.draft_tokens
    assert stats.decode_steps < 0.8 * plain[1].decode_steps


@pytest.mark.long
@pytest.mark.parametrize("vocab_size", [40, None])
def test_a_head_that_knows_nothing_changes_nothing(
    model: Model, plain: tuple[list[Completion], EngineStats], vocab_size: int | None
) -> None:
    """It drafts from features of its own; what it is right in by chance is the sampled token."""
    config = model.config.model_copy(update={"drafter": DrafterConfig(vocab_size=vocab_size)})
    head = random_params(config)[DRAFTER]
    if vocab_size is not None:
        head[VOCABULARY]["ids"] = jnp.arange(vocab_size, dtype=jnp.float32)
    found, stats = run(model, Head(head, config, num_tokens=DRAFTS))
    assert found == plain[0]
    assert stats.draft_tokens > stats.accepted_tokens


@pytest.mark.slow
def test_a_request_that_gives_up_its_pages_makes_them_again(
    model: Model, plain: tuple[list[Completion], EngineStats]
) -> None:
    found, stats = run(model, Ngram(num_tokens=DRAFTS), cache_tokens=model.config.max_seq_len)
    assert found == plain[0]
    assert stats.given_up > 0


def expected_drafts(context: Sequence[int], num: int) -> list[int]:
    """By the definition: the longest run that ends earlier as the text ends, the latest of several."""
    end = len(context) - 1
    for length in range(LONGEST, SHORTEST - 1, -1):
        for place in range(end - 1, length - 2, -1):
            if list(context[place - length + 1 : place + 1]) == list(context[end - length + 1 :]):
                following = list(context[place + 1 :])
                return [following[i % len(following)] for i in range(num)]
    return [NONE] * num


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=LENGTH))
def test_drafts_are_what_followed_the_newest_tokens_before(tokens: list[int]) -> None:
    context = np.full(LENGTH, 9, np.int32)  # what lies behind the newest token is never read
    context[: len(tokens)] = tokens
    drafts = looked_up(jnp.asarray(context), jnp.asarray(len(tokens) - 1), DRAFTS)
    assert drafts.tolist() == expected_drafts(tokens, DRAFTS)


@pytest.mark.slow
def test_the_faster_way_is_taken_and_the_other_tried_now_and_then() -> None:
    policy = DraftPolicy()
    asked: list[bool] = []
    for _ in range(4 * TRY_OTHER):
        asked.append(policy.wants_drafts(3))
        policy.measured(3, asked[-1], 100.0 if asked[-1] else 300.0)
    assert asked[:2] == [True, False]
    assert sum(asked[2:]) == 4
    for _ in range(200):
        policy.measured(3, True, 900.0)
    assert sum(policy.wants_drafts(3) for _ in range(TRY_OTHER)) == TRY_OTHER - 1
    assert policy.wants_drafts(64), "another size of batch is measured by itself"
