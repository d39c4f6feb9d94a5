"""Adapters by request: the tokens of merged weights, bits that depend on no other request, changes while it runs."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.inference.adapters import BankSizes, HeldAdapter
from lifecycle.inference.drafting import Ngram
from lifecycle.inference.engine import Engine
from lifecycle.inference.generate import generate
from lifecycle.inference.generation import Completion, EngineError
from lifecycle.inference.model import Model
from lifecycle.inference.requests import ClosedError, QueueFullError
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.adapters import adapter_tree, with_adapters
from lifecycle.model.cache import KVCache, init_cache
from lifecycle.model.decoder import forward_cached
from lifecycle.model.params import layers_apart
from lifecycle.model.weight_formats import in_format
from lifecycle.testing.adapters import random_adapter
from lifecycle.testing.families import MODELS, random_params
from lifecycle.testing.waiting import wait_until
from lifecycle.weights.adapters import AdapterError, merged
from tests.engine_turns import held

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, stop_ids=(), top_logprobs=3)
LONG = GREEDY.model_copy(update={"max_tokens": 150})
PROMPT = list(range(40, 180))  # more than a chunk
SLOTS, RANK = 3, 4
WHOLE_MODEL = 1e-4

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    with Engine(model, SLOTS, adapters=BankSizes(2, RANK), warm_up=True, cache_tokens=3 * 320) as engine:
        yield engine


def load(engine: Engine, seed: int, rank: int = RANK) -> HeldAdapter:
    assert engine.adapters is not None
    return engine.adapters.load(random_adapter(engine.model.config, seed, rank))


def unload(engine: Engine, *adapters: HeldAdapter) -> None:
    assert engine.adapters is not None
    for adapter in adapters:
        engine.adapters.unload(adapter)


def answers(engine: Engine, *adapters: HeldAdapter | None) -> list[Completion]:
    """To the prompt, together."""
    return [asked.wait() for asked in [engine.submit(PROMPT, GREEDY, adapter) for adapter in adapters]]


@pytest.mark.long
@pytest.mark.parametrize("weights", [None, pytest.param("int8", marks=pytest.mark.long)])
def test_a_requests_bits_are_those_of_it_alone_and_without_an_adapter_its_tokens_those_of_no_bank(
    model: Model, engine: Engine, weights: None
) -> None:
    if weights is not None:
        model = replace(model, params=in_format(model.config, model.params, weights))
        with Engine(model, SLOTS, adapters=BankSizes(2, RANK)) as engine:
            check_bits(model, engine)
    else:
        check_bits(model, engine)


def check_bits(model: Model, engine: Engine) -> None:
    one, two = load(engine, 1, rank=2), load(engine, 2)
    mixed = answers(engine, None, one, two, one, None)
    (plain,) = generate(model, [PROMPT], GREEDY, SLOTS)
    assert mixed[0] == mixed[4]
    assert_alike(mixed[0], plain)  # not to the bit: what XLA joins to a product depends on what follows it
    assert mixed[1] == mixed[3]
    assert len({tuple(completion.token_ids) for completion in mixed}) == 3
    assert answers(engine, two) == [mixed[2]]
    unload(engine, one, two)
    two, one = load(engine, 2), load(engine, 1, rank=2)  # in each other's places
    assert answers(engine, one, None, two) == [mixed[1], mixed[0], mixed[2]]
    unload(engine, one, two)


def assert_alike(found: Completion, expected: Completion) -> None:
    assert found.token_ids == expected.token_ids
    for token, wanted in zip(found.tokens, expected.tokens, strict=True):
        assert token.logprob == pytest.approx(wanted.logprob, abs=WHOLE_MODEL)


@pytest.mark.long
def test_greedy_tokens_are_those_of_merged_weights(model: Model, engine: Engine) -> None:
    adapter = load(engine, 1)
    (found,) = answers(engine, adapter)
    unload(engine, adapter)
    params = merged(model.params, random_adapter(model.config, 1, RANK))
    (expected,) = generate(replace(model, params=params), [PROMPT], GREEDY, SLOTS)
    assert_alike(found, expected)


def test_adapters_come_and_go_while_requests_run_and_nothing_is_compiled(engine: Engine, compiled: list[str]) -> None:
    """Each comes beside a turn."""
    compiled.clear()
    with held(engine) as turns:
        running = engine.submit(PROMPT, LONG)
        turns.let()
        one = load(engine, 1)
        beside = engine.submit(PROMPT, GREEDY, one)
        turns.let()
        two = load(engine, 2)
        turns.until(lambda: one.num_users == 0)
        unload(engine, one)
        turns.let()
        three = load(engine, 3)
        others = [engine.submit(PROMPT, GREEDY, adapter) for adapter in (two, three)]
        turns.until(lambda: two.num_users == three.num_users == 0)
        assert others[0].wait() != beside.wait()
        unload(engine, two, three)
        assert engine.stats.active == 1
    assert running.wait().finish_reason == "length"
    assert compiled == []


def test_cached_tokens_are_those_of_the_same_adapter(engine: Engine) -> None:
    """Also of the same numbers in another place, but not of others in that place."""
    one = load(engine, 11)

    def cached(adapter: HeldAdapter | None) -> int:
        asked = engine.submit(PROMPT, GREEDY, adapter)
        asked.wait()
        return asked.cached_tokens

    cached(None)
    assert [cached(None), cached(one), cached(one)] == [128, 0, 128]
    unload(engine, one)
    two = load(engine, 12)
    again = load(engine, 11)
    assert (two.place, again.version) == (one.place, one.version)
    assert [cached(two), cached(again)] == [0, 128]
    unload(engine, two, again)


def test_the_place_of_an_adapter_in_use_is_free_when_its_last_request_has_ended(engine: Engine) -> None:
    one, two = load(engine, 1), load(engine, 2)
    (expected,) = answers(engine, one)
    with held(engine) as turns:
        running = [engine.submit(PROMPT, LONG, one), engine.submit(PROMPT, GREEDY, one)]
        unload(engine, one)
        with pytest.raises(AdapterError, match="has been unloaded"):
            engine.submit(PROMPT, GREEDY, one)
        for num_users in (2, 1):
            turns.until(lambda left=num_users: one.num_users <= left)
            with pytest.raises(AdapterError, match="all 2 places for adapters are taken"):
                load(engine, 3)
        assert running[1].wait() == expected
        running[0].cancel()
    assert running[0].wait().finish_reason == "cancelled"
    three = load(engine, 3)
    assert three.place == one.place
    unload(engine, two, three)


def test_refused_and_failed_requests_end_their_use(model: Model, engine: Engine) -> None:
    adapter = load(engine, 1)
    with pytest.raises(ValueError, match="outside the tokenizer"):
        engine.submit([10_000], GREEDY, adapter)
    engine.submit(PROMPT, GREEDY.model_copy(update={"grammar": 'start: "a"'}), adapter).wait()
    wait_until(lambda: adapter.num_users == 0)
    unload(engine, adapter)
    runner = Runner(model, num_slots=1, max_queue=0, adapters=BankSizes(1, RANK))  # that takes no turn
    assert runner.adapters is not None
    adapter = runner.adapters.load(random_adapter(engine.model.config, 1, RANK))
    runner.submit(PROMPT, GREEDY, adapter)
    with pytest.raises(QueueFullError):
        runner.submit(PROMPT, GREEDY, adapter)
    assert adapter.num_users == 1
    runner.abort(EngineError("it has failed"))
    assert adapter.num_users == 0
    with pytest.raises(ClosedError):
        runner.submit(PROMPT, GREEDY, adapter)
    assert adapter.num_users == 0


def test_embeddings_have_adapters(model: Model, engine: Engine) -> None:
    adapter = load(engine, 1)
    plain, own = engine.embed(PROMPT, "mean"), engine.embed(PROMPT, "mean", adapter)
    for asked in (plain, own):
        list(asked)
    unload(engine, adapter)
    assert plain.vector is not None and own.vector is not None
    assert np.abs(plain.vector - own.vector).max() > 0.01


def test_a_rank_that_the_bank_has_no_room_for_is_refused(engine: Engine) -> None:
    with pytest.raises(AdapterError, match=r"rank 5, this server takes up to 4: set serve.adapters.rank=5"):
        load(engine, 1, rank=5)


def test_an_adapter_of_dora_is_refused(engine: Engine) -> None:
    plain = random_adapter(engine.model.config, 1, RANK)
    scaled = {name: replace(pair, magnitude=pair.b[0]) for name, pair in plain.matrices.items()}
    assert engine.adapters is not None
    with pytest.raises(AdapterError, match=r"one of DoRA \(use_dora\).*: add it to the weights"):
        engine.adapters.load(replace(plain, matrices=scaled))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "gemma2" else pytest.mark.long) for name in MODELS]
)
def test_every_family_computes_with_an_adapter_of_each_row_as_with_merged_weights(name: str) -> None:
    """Two tokens of each of three rows, the second without an adapter."""
    config = MODELS[name].trunk.model_copy(update={"compute_dtype": "float32"})
    params, adapters = (
        jax.device_get(random_params(config)),
        [random_adapter(config, seed, rank) for seed, rank in ((1, 2), (2, 3))],
    )
    ones = [adapter_tree(config, adapter.matrices, 3, "float32") for adapter in adapters]
    bank = jax.tree.map(lambda *each: np.concatenate(each, each[0].ndim - 3), *ones)
    tokens: Any = np.random.default_rng(0).integers(0, config.vocab_size, (3, 2))

    @jax.jit
    def cached(held: Any, cache: KVCache) -> jax.Array:
        return forward_cached(config, held, tokens, jnp.broadcast_to(jnp.arange(2), (3, 2)), cache)[0]

    def hidden(params: Any, ids: list[int] | None) -> np.ndarray:
        rows = None if ids is None else jnp.asarray(ids, jnp.int32)
        held = with_adapters(layers_apart(config, params), bank, rows)
        return np.asarray(cached(held, init_cache(config, 3, 8, "float32", is_apart=True)))

    found = hidden(params, [1, -1, 0])
    expected = [hidden(held, None) for held in (merged(params, adapters[1]), params, merged(params, adapters[0]))]
    for row, wanted in enumerate(expected):
        np.testing.assert_allclose(found[row], wanted[row], atol=WHOLE_MODEL)
    assert np.abs(found - expected[1])[[0, 2]].max() > 0.1


@pytest.mark.long
def test_drafts_of_rows_with_adapters_are_verified_with_them(model: Model, engine: Engine) -> None:
    """A prompt whose answers repeat themselves, so that drafts are accepted."""
    held = [None, load(engine, 1), load(engine, 2)]
    expected = [asked.wait() for asked in [engine.submit([65] * 30, LONG, adapter) for adapter in held]]
    unload(engine, *[adapter for adapter in held if adapter is not None])
    with Engine(model, SLOTS, adapters=BankSizes(2, RANK), drafter=Ngram(num_tokens=4)) as drafting:
        held = [None, load(drafting, 1), load(drafting, 2)]
        found = [asked.wait() for asked in [drafting.submit([65] * 30, LONG, adapter) for adapter in held]]
        assert drafting.stats.decode_steps < 150
    assert found == expected
