"""A request whose numbers are not finite fails alone, and says why; no other loses a bit by it, then or later."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.inference.adapters import BankSizes
from lifecycle.inference.beam_search import beam_search
from lifecycle.inference.beams import BeamConfig
from lifecycle.inference.drafting import Drafter, Ngram
from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Completion, EngineError, NotFiniteError
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.adapters import LowRank
from lifecycle.model.config import CacheFormat, MoeConfig
from lifecycle.testing.adapters import random_adapter
from lifecycle.testing.models import random_model
from lifecycle.weights.adapters import Adapter

SLOTS, RANK = 2, 2
CACHE = 512  # tokens, four pages, as in other tests of the engine: what one request leaves another gets
BAD = 200  # a token whose embedding is not a number
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, stop_ids=(), top_logprobs=1)
BIASED = GREEDY.model_copy(update={"logit_bias": ((BAD, 100.0),)})  # the first token is the bad one
GOOD: list[tuple[list[int], SamplingParams]] = [
    ([65, 66, 67], GREEDY),
    (list(range(40, 180)), GREEDY.model_copy(update={"temperature": 1.0, "seed": 3, "logit_bias": ((BAD, -100.0),)})),
]
NOT_FINITE = "after .* tokens .* not finite: its weights or the request's adapter"


def spoiled(model: Model) -> Model:
    return replace(model, params={**model.params, "embed": jnp.asarray(model.params["embed"]).at[BAD].set(jnp.nan)})


def answers(engine: Engine, requests: Sequence[tuple[list[int], SamplingParams]] = GOOD) -> list[Completion]:
    return [asked.wait() for asked in [engine.submit(*request) for request in requests]]


MOE = random_model(num_layers=2, moe=MoeConfig(num_experts=4, experts_per_token=2, d_ff=16))


@pytest.mark.parametrize(
    ("kind", "drafter", "kv_cache"),
    [
        pytest.param("dense", None, None, id="dense", marks=pytest.mark.slow),
        pytest.param("moe", None, "int8", id="experts and 8 bits", marks=pytest.mark.long),
        pytest.param("dense", Ngram(num_tokens=3), None, id="drafts", marks=pytest.mark.long),
    ],
)
def test_it_fails_alone_and_leaves_nothing_behind(
    model: Model, kind: str, drafter: Drafter | None, kv_cache: CacheFormat | None
) -> None:
    """In a prompt and in the middle of decoding, beside others and before them in the same pages."""
    whole = {"dense": model, "moe": MOE}[kind]
    with Engine(whole, SLOTS, cache_tokens=CACHE, drafter=drafter, kv_cache=kv_cache) as engine:
        expected = answers(engine)
    with Engine(spoiled(whole), SLOTS, cache_tokens=CACHE, drafter=drafter, kv_cache=kv_cache) as engine:
        for number, (prompt, params) in enumerate([([BAD] * 270, GREEDY), ([66] * 5, BIASED), ([BAD], GREEDY)]):
            bad = engine.submit(prompt, params)
            together = [engine.submit(*request) for request in GOOD]
            with pytest.raises(EngineError, match=NOT_FINITE) as raised:
                bad.wait()
            assert isinstance(raised.value.__cause__, NotFiniteError)
            assert [asked.wait() for asked in together] == expected
            assert engine.stats.not_finite == number + 1
        assert answers(engine) == expected
        assert engine.is_alive and engine.stats.active == 0


def test_tokens_before_it_are_delivered(model: Model) -> None:
    with Engine(spoiled(model), SLOTS) as engine:
        events = iter(engine.submit([66] * 5, BIASED))
        made = []
        with pytest.raises(EngineError, match="after 6 tokens of prompt and output"):
            for event in events:
                made += event.tokens
        assert [token.id for token in made] in ([BAD], [])  # its bytes may be half a character


def test_log_probabilities_vectors_and_beams_are_numbers_or_an_error(model: Model) -> None:
    scored = GREEDY.model_copy(update={"prompt_logprobs": 1})
    bad = spoiled(model)
    with Engine(bad, SLOTS) as engine:
        for asked in (engine.submit([65, BAD], scored), engine.embed([BAD, 65], "mean"), engine.embed([BAD], "last")):
            with pytest.raises(EngineError, match=NOT_FINITE):
                asked.wait()
        assert engine.stats.not_finite == 3
        vector = engine.embed([65], "mean")
        assert vector.wait() and vector.vector is not None and np.isfinite(vector.vector).all()
    with pytest.raises(NotFiniteError, match="after 2 tokens"):
        beam_search(bad, [[65, BAD]], BeamConfig(num_beams=2), 4, num_slots=2)


@pytest.mark.long
def test_an_adapter_that_overflows_spoils_its_own_requests_only(model: Model) -> None:
    good, bad = (random_adapter(model.config, seed, RANK) for seed in (1, 2))
    huge = {name: LowRank(pair.a, pair.b * np.float32(1e38)) for name, pair in bad.matrices.items()}
    with Engine(model, SLOTS, adapters=BankSizes(2, RANK), cache_tokens=CACHE) as engine:
        assert engine.adapters is not None
        own, broken = engine.adapters.load(good), engine.adapters.load(Adapter(huge, bad.version))
        expected = [engine.submit(*GOOD[0], adapter).wait() for adapter in (None, own)]
        for _ in range(2):
            failing = engine.submit(*GOOD[1], broken)
            beside = [engine.submit(*GOOD[0], adapter) for adapter in (None, own)]
            with pytest.raises(EngineError, match=NOT_FINITE):
                failing.wait()
            assert [asked.wait() for asked in beside] == expected
        assert engine.stats.not_finite == 2
