"""Completions in pieces: which groups a step takes, what is in flight, and that nothing of a completion changes."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError
from lifecycle.rl.config import GrpoConfig
from lifecycle.rl.partial import Begun, Group, num_to_begin, taken
from lifecycle.rl.rollouts import Prompt
from lifecycle.testing.families import random_params
from lifecycle.training.objectives.policy import OLD, SAMPLER
from tests.rl.toy_policy import MODEL, assert_same, batches_of, later, order, prompts, sampler_of, settings

PIECES: dict[str, Any] = {"max_staleness": 1, "partial": {"prompts_in_flight": 6, "tokens": 2}}


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL)


@given(st.data())
def test_every_group_is_trained_on_in_time(data: st.DataObject) -> None:
    """Whatever the lengths of completions: each step has its groups, none is too old, and none is left at the end."""
    num, most = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    in_flight, steps = data.draw(st.integers(num + 1, num * (most + 1))), data.draw(st.integers(1, 12))
    config = settings(
        steps=steps, prompts_per_step=num, max_staleness=most, global_batch_size=32,
        partial={"prompts_in_flight": in_flight, "tokens": 1},
    )  # fmt: skip
    flight: list[tuple[Group, int]] = []  # with the pieces that it still needs
    number = 0
    for step in range(steps):
        for _ in range(num_to_begin([group for group, _ in flight], config, step)):
            flight.append((Group(Prompt(number, [1], ""), step, [Begun(0)]), data.draw(st.integers(1, 9))))
            number += 1
        while (places := taken([group for group, _ in flight], config, step)) is None:
            assert any(missing for _, missing in flight), "all are whole and none can be taken"
            flight = [(ended(group) if missing <= 1 else group, max(missing - 1, 0)) for group, missing in flight]
        versions = [flight[place][0].version for place in places]
        assert len(places) == num and versions == sorted(versions) and min(versions) >= step - most
        flight = [one for place, one in enumerate(flight) if place not in places]
    assert not flight


def ended(group: Group) -> Group:
    """A group whose samples have ended."""
    return replace(group, samples=[replace(one, is_whole=True) for one in group.samples])


@pytest.mark.long
def test_pieces_by_the_same_weights_are_the_completions_at_once(params: Any) -> None:
    config = settings(**PIECES)
    batches, whole = batches_of(config, params), sampler_of(config, MODEL)
    asked, seen = iter(["abcde".index(letter) for letter in order(12)]), {}
    for step, num in enumerate((6, 3, 3)):
        drawn = whole.drawn(step, params, [prompts()[next(asked)] for _ in range(num)])
        seen |= {(rollout.prompt.number, tuple(rollout.ids)): rollout for rollout in drawn.rollouts}
    waited, left = [], []
    for step in range(4):
        made = batches.of_step(step, params)
        assert made.scored is not None and len(made.scored.rollouts) == 12
        for rollout in made.scored.rollouts:
            expected = seen[rollout.prompt.number, tuple(rollout.ids)]
            assert (rollout.text, rollout.is_cut) == (expected.text, expected.is_cut)
            np.testing.assert_allclose(rollout.logprobs, expected.logprobs, atol=1e-5)
        np.testing.assert_array_equal(made.batch[OLD], made.batch[SAMPLER])
        waited.append(made.metrics["sampling/staleness"])
        left.append(made.metrics["sampling/carried_groups"])
    assert 0 < max(waited) <= 1 and left == [3, 3, 3, 0]
    batches.close()


@pytest.mark.parametrize(
    "own", [{}, pytest.param({"top_k": 50, "top_p": 0.9}, marks=pytest.mark.slow)], ids=["all ids", "top-k"]
)
def test_what_is_in_flight_is_in_the_state(own: dict[str, Any], params: Any) -> None:
    config = settings(**PIECES, **own)
    batches = batches_of(config, params)
    first = {step: batches.batch(step, later(params, step)) for step in range(2)}
    before = json.loads(json.dumps(batches.state(1)))
    state = json.loads(json.dumps(batches.state(2)))
    assert len(before["flight"]) == len(state["flight"]) == 3 and before["place"] < state["place"]
    for begin, content in ((1, before), (2, state)):
        again = batches_of(config, params)
        assert again.restore(content) == begin
        assert_same(again.batch(begin, later(params, begin)), first.get(begin) or batches.batch(2, later(params, 2)))
        again.close()
    batches.close()


def test_a_branch_gives_up_what_is_in_flight(params: Any) -> None:
    batches, branch = batches_of(settings(**PIECES), params), batches_of(settings(), params)
    batches.batch(0, params)
    state = batches.state(1)
    assert branch.continue_from(state) == 1
    letters = ["abcde"[number] for number in branch.of_step(1, params).prompts]
    assert letters == order(9)[6:] and state["place"] == 6
    batches.close()


def test_steps_that_were_passed_over_had_what_was_in_flight(params: Any) -> None:
    config = settings(**PIECES)
    batches, plain = batches_of(config, params), sampler_of(config, MODEL)
    batches.batch(0, params)
    made = batches.of_step(3, params)
    assert made.metrics["sampling/staleness"] == 0 and made.scored is not None
    expected = {tuple(rollout.ids) for rollout in plain.drawn(3, params, [prompts()[n] for n in made.prompts]).rollouts}
    assert {tuple(rollout.ids) for rollout in made.scored.rollouts} == expected
    batches.close()


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"max_staleness": 0}, "set max_staleness"),
        ({"partial": {"prompts_in_flight": 3, "tokens": 2}}, "must be above prompts_per_step=3, and at most 6"),
        ({"partial": {"prompts_in_flight": 7, "tokens": 2}}, "within max_staleness=1"),
        ({"partial": {"prompts_in_flight": 6, "tokens": 6}}, "must be below max_completion_tokens=6"),
    ],
    ids=str,
)
def test_bounds_are_checked(own: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(GrpoConfig, **PIECES | own)
