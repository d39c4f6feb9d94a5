"""The engine with a KV cache in 8 bits: within the format outputs are the same whatever else happens."""

from typing import Any

import pytest

from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Completion, Generation, collect
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from tests.engine_turns import held

SLOTS = 2
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, stop_ids=())
LONG = [number % 250 for number in range(300)]


def answers(engine: Engine, prompts: list[list[int]], settings: list[SamplingParams]) -> list[Completion]:
    """All at once."""
    with held(engine):
        running = [engine.submit(prompt, own) for prompt, own in zip(prompts, settings, strict=True)]
    return [collect(list(generation)) for generation in running]


@pytest.mark.parametrize(
    "kv_cache", [pytest.param("int8", marks=pytest.mark.slow), pytest.param("fp8", marks=pytest.mark.long)]
)
def test_no_output_depends_on_the_batch_on_cached_prefixes_or_on_pages_given_up(model: Model, kv_cache: Any) -> None:
    """To the last bit: alone in an empty cache; then all together in one that is too small; then from cached prefixes.
    The prompt's scores too."""
    changes: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 3}, {"prompt_logprobs": 1}, {}]
    settings = [GREEDY.model_copy(update={"max_tokens": 240, **change}) for change in changes]
    prompts = [[65 + number] * 20 for number in range(4)]
    settings += [GREEDY] * 2
    prompts += [LONG, LONG[:200] + [7] * 30]
    with Engine(model, SLOTS, cache_tokens=512, kv_cache=kv_cache) as engine:
        assert engine.stats.cache_bytes < 0.4 * _bytes(model)
        alone: list[Completion] = []
        scores: list[Generation] = []
        for prompt, own in zip(prompts, settings, strict=True):
            scores.append(engine.submit(prompt, own))
            alone.append(scores[-1].wait())
        assert engine.stats.cached_tokens == 128  # the last prompt's beginning
        assert answers(engine, prompts, settings) == alone
        assert engine.stats.given_up > 0 and engine.stats.cached_tokens > 128
    assert len(scores[2].prompt_tokens) == 19


def _bytes(model: Model) -> int:
    """Of the same cache in float32."""
    config = model.config
    return 4 * 2 * 512 * config.num_layers * config.num_kv_heads * config.head_dim
