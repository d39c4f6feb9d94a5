"""Predicted outputs: how much of one is right, and that it makes answers come in fewer steps, the same ones."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.inference.drafting import Ngram
from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Generation
from lifecycle.inference.model import Model
from lifecycle.inference.predicted import PredictedTokens
from tests.engine_turns import held
from tests.inference.drafted import DRAFTS, GREEDY, SAMPLED, SLOTS, answers, drafting_engine

PROMPTS = ([65], [66] * 5)


def accepted(prediction: str, output: str) -> int:
    counted = PredictedTokens([*prediction.encode()])
    for token in output.encode():
        counted.push(token)
    return counted.num_accepted


@pytest.mark.parametrize(
    ("prediction", "output", "expected"),
    [
        ("abcdef", "abcdef", 6),
        ("abcdef", "abcdefgh", 6),
        ("abcdef", "abc", 3),
        ("abcdef", "abXdef", 5),  # another token
        ("abcdef", "abXYcdef", 6),  # more tokens
        ("abcdef", "abef", 4),  # fewer
        ("abcdef", "XYZ", 0),
        ("abcdef", "XbcY", 2),
        ("abab", "ababab", 4),  # each counts once
        ("", "abc", 0),
    ],
)
def test_tokens_are_accepted_that_the_output_has_in_the_same_order(prediction: str, output: str, expected: int) -> None:
    assert accepted(prediction, output) == expected


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_what_is_accepted_is_a_common_subsequence(prediction: str, output: str) -> None:
    num = accepted(prediction, output)
    every = [{"".join(part) for part in combinations(text, num)} for text in (prediction, output)]
    assert every[0] & every[1]


@pytest.mark.slow
def test_a_prediction_saves_steps_and_changes_nothing(model: Model) -> None:
    """Right from the first token on, or wrong in the middle; of greedy and sampled requests; and gone when another
    request has the slot."""
    with Engine(model, SLOTS) as engine:
        requests = [(prompt, params) for prompt in PROMPTS for params in (GREEDY, SAMPLED)]
        plain = answers(engine, requests)
    with drafting_engine(model, Ngram(num_tokens=DRAFTS)) as engine:

        def steps(changed: int) -> tuple[list[Generation], int]:
            before, asked = engine.stats.decode_steps, []
            with held(engine):
                for request, known in zip(requests, plain, strict=True):
                    prediction = [*known.token_ids[:20], *[254] * changed, *known.token_ids[20 + changed :]]
                    asked.append(engine.submit(*request, prediction=prediction))
            assert [generation.wait() for generation in asked] == plain
            return asked, engine.stats.decode_steps - before

        (right, few), (wrong, more) = steps(0), steps(5)
        assert [generation.num_predicted for generation in right] == [40] * 4
        assert all(30 <= generation.num_predicted <= 36 for generation in wrong)
        assert few < more < engine.stats.decode_tokens / 4
        assert answers(engine, requests) == plain
        assert not (engine._runner._table.context[:, : model.config.max_seq_len] >= 0).any()


def test_a_prediction_that_cannot_be_used_is_refused(model: Model) -> None:
    with Engine(model, SLOTS) as engine, pytest.raises(ValueError, match=r"needs a drafter that looks up tokens"):
        engine.submit([65], GREEDY, prediction=[66])
    with Engine(model, SLOTS, drafter=Ngram(num_tokens=DRAFTS)) as engine:
        assert engine.takes_predictions
        with pytest.raises(ValueError, match=r"outside the tokenizer's 261"):
            engine.submit([65], GREEDY, prediction=[261])
