"""A prompt of which several answers are asked is computed once, and each answer has the bits of it alone."""

from collections.abc import Sequence
from typing import Any

import pytest

from lifecycle.inference.generate import generate
from lifecycle.inference.generation import Completion, EngineError
from lifecycle.inference.model import Model
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import CacheFormat, MlaConfig
from lifecycle.testing.models import random_model
from tests.inference.test_inference_faults import BAD, NOT_FINITE, spoiled

SLOTS = 4
LONG = [1 + (7 * i) % 200 for i in range(150)]  # a whole chunk and a part of one
SHORT = [70, 71, 72]
SAMPLED = SamplingParams(temperature=1.0, max_tokens=12, stop_ids=(), top_logprobs=2)
SETTINGS = [
    SAMPLED.model_copy(update={"seed": 1}),
    SAMPLED.model_copy(update={"seed": 2, "presence_penalty": 0.8, "max_tokens": 1}),  # its end frees pages at once
    SAMPLED.model_copy(update={"seed": 3, "top_k": 5, "logit_bias": ((9, 2.0),)}),
    SAMPLED.model_copy(update={"seed": 4, "repetition_penalty": 1.3}),
    SAMPLED.model_copy(update={"seed": 5, "repetition_penalty": 1.7}),
    SAMPLED.model_copy(update={"seed": 6, "prompt_logprobs": 1}),
]
LATENT = MlaConfig(q_lora_rank=None, kv_lora_rank=16, nope_head_dim=16, rope_head_dim=8, v_head_dim=16)


def answers(
    model: Model, prompts: Sequence[list[int]], settings: Sequence[SamplingParams], **options: Any
) -> tuple[list[Completion], int]:
    """The answers, and how many tokens of prompts were computed."""
    runner = Runner(model, SLOTS, 2 * len(prompts), dispatch_s=float("inf"), **options)
    asked = [runner.submit(*request) for request in zip(prompts, settings, strict=True)]
    while runner.has_work:
        runner.turn()
    assert runner.stats.pages["used"] == 0
    return [each.wait() for each in asked], runner.stats.prefill_tokens


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"layer_pattern": ("local", "global"), "window": 40}, id="windows", marks=pytest.mark.long),
        pytest.param({"mla": LATENT, "head_dim": 24, "num_kv_heads": 2}, id="latents", marks=pytest.mark.long),
    ],
)
def test_answers_to_one_prompt_are_those_of_it_alone_bit_by_bit(sizes: dict[str, Any]) -> None:
    """Six requests in four slots. Whose tokens of the prompt are penalised is no twin of whose are not; the last asks
    for the prompt's own log-probabilities, which all of it is computed for."""
    model = random_model(**sizes)
    alone = [generate(model, [LONG], own, SLOTS)[0] for own in SETTINGS]
    found, num_computed = answers(model, [LONG] * len(SETTINGS), SETTINGS)
    assert found == alone and len({tuple(each.token_ids[:1]) for each in found}) > 2
    # for the first three together, for the fourth, for the fifth from the whole chunk on, for the sixth
    assert num_computed == 3 * len(LONG) + len(LONG) - 128


@pytest.mark.slow
@pytest.mark.parametrize("kv_cache", ["int8", pytest.param("fp8", marks=pytest.mark.long)])
def test_pages_in_8_bits_are_copied_with_their_scales(model: Model, kv_cache: CacheFormat) -> None:
    alone = [answers(model, [LONG], [own], kv_cache=kv_cache)[0][0] for own in SETTINGS[:3]]
    found, num_computed = answers(model, [LONG] * 3, SETTINGS[:3], kv_cache=kv_cache)
    assert found == alone and num_computed == len(LONG)


def test_a_faulty_prompt_fails_all_its_answers_and_no_other(model: Model) -> None:
    runner = Runner(spoiled(model), SLOTS, 8, dispatch_s=float("inf"))
    bad = [runner.submit([*LONG[:-1], BAD], own) for own in SETTINGS[:2]]
    good = runner.submit(SHORT, SETTINGS[0])
    while runner.has_work:
        runner.turn()
    for each in bad:
        with pytest.raises(EngineError, match=NOT_FINITE):
            each.wait()
    assert good.wait() == generate(model, [SHORT], SETTINGS[0], SLOTS)[0]


@pytest.mark.slow
def test_who_is_cancelled_takes_nothing_from_those_that_wait_for_it(model: Model) -> None:
    """The first of three, before and after it has its prompt."""
    alone = [generate(model, [LONG], own, SLOTS)[0] for own in SETTINGS[:3]]
    for turns in (0, 1):
        runner = Runner(model, SLOTS, 8)
        asked = [runner.submit(LONG, own) for own in SETTINGS[:3]]
        for _ in range(turns):
            runner.turn()
        asked[0].cancel()
        while runner.has_work:
            runner.turn()
        assert asked[0].wait().finish_reason == "cancelled"
        assert [each.wait() for each in asked[1:]] == alone[1:]
        assert runner.stats.prefill_tokens == len(LONG)
