"""The engine against a plain loop over the full forward pass, and what a caller relies on."""

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.core.typing import Array
from lifecycle.inference.engine import Engine
from lifecycle.inference.generate import Generator, generate
from lifecycle.inference.generation import Assembler, EngineError, Token, collect
from lifecycle.inference.intake import ContextLengthError
from lifecycle.inference.model import Model
from lifecycle.inference.requests import ClosedError, QueueFullError
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.slots import SlotTable
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.model.params import Params
from lifecycle.ops.cost import CostMeter
from lifecycle.testing.families import random_params
from lifecycle.testing.waiting import LIMIT_S
from tests.engine_turns import Turns, held

SLOTS = 2  # one number for all tests: each costs a compilation
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, stop_ids=())
PROMPTS = [[65], [66] * 5, list(range(40, 57)), [i % 250 for i in range(300)], [70, 71, 72]]  # 1 to 300: two chunks

pytestmark = pytest.mark.usefixtures("chunks_of_two_sizes")


@partial(jax.jit, static_argnums=0)
def whole_logits(config: ModelConfig, params: Params, tokens: Array) -> Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return logits(config, params, forward(config, params, tokens, positions))[0]


def plain_greedy(
    model: Model, prompt: list[int], count: int, penalty: float = 1.0, presence: float = 0.0, frequency: float = 0.0
) -> tuple[list[int], list[float]]:
    """Greedy tokens and log-probabilities by one full forward a token."""
    ids, logprobs = list(prompt), []
    for _ in range(count):
        tokens = np.zeros((1, model.config.max_seq_len), np.int32)
        tokens[0, : len(ids)] = ids
        row = np.asarray(whole_logits(model.config, model.params, tokens), np.float64)[len(ids) - 1]
        penalised = row.copy()
        for token in set(ids):
            penalised[token] *= 1 / penalty if row[token] > 0 else penalty
        for token in ids[len(prompt) :]:
            penalised[token] -= frequency
        penalised[list(set(ids[len(prompt) :]))] -= presence
        ids.append(int(penalised.argmax()))
        logprobs.append(float(row[ids[-1]] - np.log(np.exp(row).sum())))
    return ids[len(prompt) :], logprobs


def test_a_batch_of_unequal_prompts_equals_a_plain_loop_over_the_whole_model(model: Model) -> None:
    together = generate(model, PROMPTS, GREEDY, num_slots=SLOTS)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        expected, logprobs = plain_greedy(model, prompt, 12)
        assert completion.token_ids == expected
        np.testing.assert_allclose([t.logprob for t in completion.tokens], logprobs, atol=1e-4)
        assert completion.finish_reason == "length"


def test_a_repetition_penalty_is_for_the_tokens_of_prompt_and_output(model: Model) -> None:
    """In slots that other prompts had before, and beside a request without one."""
    settings = [GREEDY.model_copy(update={"repetition_penalty": penalty}) for penalty in (1.3, 1.0, 1.3, 1.3, 1.0)]
    with Engine(model, SLOTS) as engine:
        pairs = list(zip(PROMPTS, settings, strict=True))
        found = [collect(list(generation)) for generation in [engine.submit(*pair) for pair in pairs]]
    for (prompt, own), completion in zip(pairs, found, strict=True):
        expected, logprobs = plain_greedy(model, prompt, 12, own.repetition_penalty)
        assert completion.token_ids == expected
        np.testing.assert_allclose([t.logprob for t in completion.tokens], logprobs, atol=1e-4)
    assert len(set(found[2].token_ids)) > len(set(plain_greedy(model, PROMPTS[2], 12)[0]))


def test_presence_and_frequency_penalties_are_for_the_tokens_of_the_output(model: Model) -> None:
    """In slots that other outputs had before; by more than one dispatch."""
    chosen = [(0.4, 0.3), (0.0, 0.0), (2.0, 0.0), (0.0, 0.8), (-2.0, -2.0)]
    settings = [
        GREEDY.model_copy(update={"presence_penalty": presence, "frequency_penalty": frequency, "max_tokens": 20})
        for presence, frequency in chosen
    ]
    found = [completion.token_ids for completion in generate(model, PROMPTS, settings, SLOTS)]
    for prompt, pair, ids in zip(PROMPTS, chosen, found, strict=True):
        assert ids == plain_greedy(model, prompt, 20, 1.0, *pair)[0]
    assert len(set(found[4])) < len(set(found[2]))  # drawn to what it has, and away from it


def test_a_bias_makes_a_token_certain_or_impossible_and_its_ids_are_checked(model: Model) -> None:
    plain = generate(model, [[65]], GREEDY, SLOTS)[0].token_ids
    settings = [
        GREEDY.model_copy(update={"logit_bias": ((7, 100.0),)}),
        GREEDY.model_copy(update={"logit_bias": tuple((token, -100.0) for token in set(plain))}),
        GREEDY,
    ]
    certain, without, after = (one.token_ids for one in generate(model, [[65]] * 3, settings, SLOTS))
    assert certain == [7] * 12 and not {*without} & {*plain} and after == plain
    with pytest.raises(ValueError, match=r"logit_bias: token id \d+ is outside"):
        generate(model, [[65]], GREEDY.model_copy(update={"logit_bias": ((model.tokenizer.vocab_size, 1.0),)}), SLOTS)


def test_a_prompts_own_log_probabilities_are_those_of_the_full_forward(model: Model) -> None:
    """Over several chunks, in a slot that another prompt had, beside a request that does not ask."""
    asking = GREEDY.model_copy(update={"prompt_logprobs": 3, "max_tokens": 1})
    with Engine(model, SLOTS) as engine:
        others = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
        generations = [engine.submit(prompt, asking) for prompt in PROMPTS]
        completions = [generation.wait() for generation in generations]
        assert all(not other.prompt_tokens for other in others)
    for prompt, generation, completion in zip(PROMPTS, generations, completions, strict=True):
        tokens = np.zeros((1, model.config.max_seq_len), np.int32)
        tokens[0, : len(prompt)] = prompt
        exact = np.asarray(jax.nn.log_softmax(whole_logits(model.config, model.params, tokens)))[: len(prompt)]
        assert [token.id for token in generation.prompt_tokens] == prompt[1:]
        found = [token.logprob for token in generation.prompt_tokens]
        np.testing.assert_allclose(found, exact[np.arange(len(prompt) - 1), prompt[1:]], atol=1e-4)
        for place, token in enumerate(generation.prompt_tokens):
            assert [i for i, _ in token.top] == np.argsort(-exact[place], kind="stable")[:3].tolist()
        assert completion.token_ids == plain_greedy(model, prompt, 1)[0]


def test_alone_equals_in_a_batch_bit_by_bit(model: Model) -> None:
    together = generate(model, PROMPTS, GREEDY, num_slots=SLOTS)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        assert generate(model, [prompt], GREEDY, num_slots=SLOTS) == [completion]


def test_the_same_seed_gives_the_same_text_whatever_else_is_running(model: Model) -> None:
    seeded = SamplingParams(temperature=1.0, top_p=0.9, seed=7, max_tokens=20, stop_ids=())
    alone = generate(model, [[65, 66]], seeded, SLOTS)[0]
    noise = SamplingParams(temperature=1.5, max_tokens=30, stop_ids=())
    crowd = generate(model, [[1], [65, 66], [2, 3], [4]], [noise, seeded, noise, GREEDY], SLOTS)[1]
    assert crowd.token_ids == alone.token_ids
    assert generate(model, [[65, 66]], seeded.model_copy(update={"seed": 8}), SLOTS)[0].token_ids != alone.token_ids


def test_nothing_is_compiled_after_the_warm_up(model: Model, compiled: list[str]) -> None:
    with Engine(model, num_slots=SLOTS, warm_up=True) as engine:
        compiled.clear()
        some = [SamplingParams(temperature=t, top_logprobs=n, max_tokens=9) for t, n in ((0, 0), (1, 5), (0.5, 0))]
        for generation in [engine.submit(prompt, params) for prompt in PROMPTS for params in some]:
            generation.wait()
        assert compiled == []


def test_an_engines_model_has_no_weights_for_another(model: Model) -> None:
    with Engine(model, 1) as engine, pytest.raises(ValueError, match="no weights: it is an engine's `model`"):
        Engine(engine.model, 1)


def test_requests_decode_together_and_more_than_the_slots_wait_their_turn(model: Model) -> None:
    with Engine(model, num_slots=SLOTS) as engine:
        with held(engine):  # until all are there
            running = [engine.submit([65 + i], GREEDY) for i in range(5)]
        assert [len(g.wait().tokens) for g in running] == [12] * 5
        stats = engine.stats
    assert stats.largest_batch == 2
    assert stats.decode_tokens == 5 * 11  # the first token of each comes from its prefill
    assert stats.decode_steps < 5 * 11
    assert stats.active == stats.waiting == 0


def test_stop_ids_and_stop_strings_end_the_output_and_are_not_in_the_text(model: Model) -> None:
    whole = generate(model, [[65]], GREEDY, SLOTS)[0]
    third = whole.token_ids[2]
    by_id = generate(model, [[65]], GREEDY.model_copy(update={"stop_ids": (third,)}), SLOTS)[0]
    first = whole.token_ids.index(third)
    assert by_id.finish_reason == "stop"
    assert by_id.token_ids == whole.token_ids[: first + 1]
    assert by_id.text == model.tokenizer.decode(whole.token_ids[:first])
    letters = whole.text[4:6]
    by_text = generate(model, [[65]], GREEDY.model_copy(update={"stop": ("never", letters)}), SLOTS)[0]
    assert by_text.finish_reason == "stop"
    assert by_text.text == whole.text[: whole.text.index(letters)]
    assert by_text.token_ids == whole.token_ids[: len(by_text.tokens)]


def test_text_never_splits_a_character(model: Model) -> None:
    """Random bytes decode to many replacement characters; the events' texts still add up to the whole decoding."""
    params = SamplingParams(temperature=2.0, seed=3, max_tokens=200, stop_ids=())
    with Engine(model, num_slots=SLOTS) as engine:
        events = list(engine.submit([65], params))
    completion = collect(events)
    assert completion.text == model.tokenizer.decode(completion.token_ids)
    assert len(events) > 3


def test_cancel_frees_the_slot_and_the_others_go_on(model: Model) -> None:
    long = SamplingParams(temperature=0.0, max_tokens=300, stop_ids=())
    with Engine(model, num_slots=SLOTS) as engine:
        with held(engine) as turns:
            running, _, waiting, last = (engine.submit([65 + i], long) for i in range(4))
            turns.until(lambda: engine.stats.decode_tokens > 0)
            waiting.cancel()
            running.cancel()
        assert running.wait().finish_reason == "cancelled"
        assert waiting.wait().finish_reason == "cancelled"
        assert last.wait().finish_reason == "length"


def test_leaving_an_async_stream_cancels_it(model: Model) -> None:
    long = SamplingParams(temperature=0.0, max_tokens=300, stop_ids=())

    async def read_one(engine: Engine, turns: Turns) -> None:
        stream = aiter(engine.submit([65], long))
        turns.let(8)  # of the nineteen that it takes at least
        await anext(stream)
        await stream.aclose()

    async def read_all(engine: Engine) -> str:
        return collect([event async for event in engine.submit([65], GREEDY)]).text

    with Engine(model, num_slots=SLOTS) as engine:
        with held(engine) as turns:
            asyncio.run(read_one(engine, turns))
        assert asyncio.run(read_all(engine)) == generate(model, [[65]], GREEDY, SLOTS)[0].text
        assert engine.stats.decode_tokens < 300


def test_what_does_not_fit_is_refused_with_both_numbers(model: Model) -> None:
    with Engine(model, num_slots=SLOTS, max_seq_len=50) as engine:
        with pytest.raises(ContextLengthError, match=r"50 tokens, but 61 were asked for \(41 in the prompt, 20"):
            engine.submit([1] * 41, SamplingParams(max_tokens=20))
        with pytest.raises(ContextLengthError, match="51 were asked for"):
            engine.submit([1] * 50, SamplingParams())
        with pytest.raises(ContextLengthError, match="prompt is empty"):
            engine.submit([], SamplingParams())
        with pytest.raises(ValueError, match="outside the tokenizer's 261"):
            engine.submit([1, 261], SamplingParams())
    with pytest.raises(ClosedError):
        engine.submit([1], SamplingParams())


def test_what_finds_no_room_to_wait_is_refused_and_later_taken(model: Model) -> None:
    with Engine(model, num_slots=SLOTS, max_queue=1) as engine:
        long = SamplingParams(temperature=0.0, max_tokens=300, stop_ids=())
        with held(engine) as turns:
            running = [engine.submit([65], long) for _ in range(3)]
            turns.until(lambda: engine.stats.active == SLOTS)
            with pytest.raises(QueueFullError, match="2 requests are running and 1 queued"):
                engine.submit([65], GREEDY)
        for generation in running:
            generation.wait()
        assert len(engine.submit([65], GREEDY).wait().tokens) == 12


@pytest.mark.slow
def test_ids_beyond_the_tokenizer_are_never_generated_nor_told(model: Model) -> None:
    """A vocabulary padded for the hardware: the padding's rows may be anything."""
    config = model.config.model_copy(update={"vocab_size": 300})
    params = random_params(config, 1)
    params["head"] = params["head"].at[261:].multiply(50.0)  # unmasked, these would nearly always win
    padded = replace(model, config=config, params=params)
    both = [SamplingParams(temperature=t, max_tokens=30, stop_ids=(), top_logprobs=20, seed=1) for t in (0.0, 1.5)]
    for completion in generate(padded, [[65], [66]], both, SLOTS):
        assert max(completion.token_ids) < 261
        assert all(token_id < 261 for token in completion.tokens for token_id, _ in token.top)


def test_without_max_tokens_the_output_fills_the_context(model: Model) -> None:
    with Engine(model, num_slots=SLOTS) as engine:
        assert len(engine.submit([1] * 310, SamplingParams(stop_ids=())).wait().tokens) == 10


def test_closing_lets_accepted_requests_end(model: Model) -> None:
    engine = Engine(model, num_slots=SLOTS)
    running = [engine.submit([65], GREEDY) for _ in range(3)]
    engine.close()
    assert [g.wait().finish_reason for g in running] == ["length"] * 3


def test_an_error_on_the_device_fails_every_pending_request(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    monkeypatch.setattr("lifecycle.inference.programs.decode", lambda *_: (_ for _ in ()).throw(OSError("lost device")))
    engine = Engine(model, num_slots=SLOTS)
    with held(engine):
        running = [engine.submit([65], GREEDY) for _ in range(2)]
    for generation in running:
        with pytest.raises(EngineError):
            list(generation)
    engine._thread.join()
    assert not engine.is_alive
    assert isinstance(printed[0].exc_value, OSError)
    with pytest.raises(EngineError):
        engine.submit([65], GREEDY)


def test_an_error_of_one_request_fails_that_request_only(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Raised where a request is admitted, and where its tokens are delivered."""
    opened, pushed = SlotTable.open, Assembler.push

    def failing_open(table: SlotTable, slot: int, params: SamplingParams, *rest: Any) -> None:
        if params.seed == 1:
            raise OverflowError("too large for the slot's array")
        opened(table, slot, params, *rest)

    def failing_push(assembler: Assembler, token: Token, is_last: bool) -> None:
        if assembler._stop._stops:
            raise UnicodeError("no such token")
        pushed(assembler, token, is_last)

    alone = generate(model, PROMPTS[:2], GREEDY, num_slots=SLOTS)
    monkeypatch.setattr(SlotTable, "open", failing_open)
    monkeypatch.setattr(Assembler, "push", failing_push)
    with Engine(model, num_slots=SLOTS) as engine:
        good = [engine.submit(PROMPTS[0], GREEDY)]
        changes: tuple[dict[str, Any], ...] = ({"seed": 1}, {"stop": ("never",)})
        bad = [engine.submit([65], GREEDY.model_copy(update=change)) for change in changes]
        good.append(engine.submit(PROMPTS[1], GREEDY))
        for generation, reason in zip(bad, ("OverflowError: too large", "UnicodeError: no such token"), strict=True):
            with pytest.raises(EngineError, match=reason):
                generation.wait()
        assert [generation.wait() for generation in good] == alone
        assert engine.is_alive and engine.stats.active == 0
    assert caplog.text.count("a request failed") == 2


def test_a_broken_engine_says_so_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr("lifecycle.inference.programs.decode", lambda *_: (_ for _ in ()).throw(OSError("lost device")))
    broken = threading.Event()
    engine = Engine(model, num_slots=SLOTS, on_broken=broken.set)
    with pytest.raises(EngineError):
        engine.submit([65], GREEDY).wait()
    assert broken.wait(LIMIT_S) and not engine.is_alive


def test_who_ended_before_the_engine_broke_is_told_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a turn tells waits for the next dispatch, which here fails, or does not come."""
    hung = Runner(model, SLOTS, max_queue=1)
    asked = [hung.submit([65], GREEDY.model_copy(update={"max_tokens": tokens})) for tokens in (2, 50)]
    hung.turn()
    hung.abort(EngineError("hung"))
    assert len(asked[0].wait().tokens) == 2
    with pytest.raises(EngineError, match="hung"):
        asked[1].wait()

    runner = Runner(model, SLOTS, max_queue=1)
    short, long = (runner.submit([65], GREEDY.model_copy(update={"max_tokens": tokens})) for tokens in (2, 50))
    runner.turn()
    monkeypatch.setattr("lifecycle.inference.programs.decode", lambda *_: (_ for _ in ()).throw(OSError("lost device")))
    with pytest.raises(OSError, match="lost device"):
        runner.turn()
    runner.abort(EngineError("broken"))
    assert len(short.wait().tokens) == 2
    with pytest.raises(EngineError, match="broken"):
        long.wait()


def test_closing_is_not_breaking(model: Model) -> None:
    broken = threading.Event()
    with Engine(model, num_slots=SLOTS, on_broken=broken.set) as engine:
        engine.submit([65], GREEDY).wait()
    assert not broken.is_set()


def test_a_dispatchs_wall_time_is_charged_to_the_requests_in_it(model: Model) -> None:
    charged: list[tuple[float, dict[str, int]]] = []
    with Engine(model, num_slots=SLOTS, on_dispatch=lambda held_s, tokens: charged.append((held_s, dict(tokens)))) as e:
        began = time.perf_counter()
        running = [e.submit(prompt, GREEDY) for prompt in PROMPTS[:3]]
        for generation in running:
            generation.wait()
        wall_s = time.perf_counter() - began
    for generation in running:
        assert sum(tokens.get(generation.id, 0) for _, tokens in charged) == len(generation.prompt) + 11
    assert 0 < sum(held_s for held_s, _ in charged) <= wall_s


def test_two_engines_run_side_by_side_and_each_pays_for_its_own_dispatches(model: Model) -> None:
    """Each waits after its first dispatch for the other's: engines that took turns would hang."""
    other = replace(model, params=random_params(model.config, 1), version="v1")
    alone = [generate(each, PROMPTS[:3], GREEDY, SLOTS) for each in (model, other)]
    meter, meeting = CostMeter(), threading.Barrier(2)
    held: list[list[float]] = [[], []]

    def charge(number: int, held_s: float, tokens: Mapping[str, int]) -> None:
        if not held[number]:
            meeting.wait(LIMIT_S)
        held[number].append(held_s)
        meter.charge(held_s, tokens)

    with (
        Engine(model, num_slots=SLOTS, on_dispatch=partial(charge, 0)) as first,
        Engine(other, num_slots=SLOTS, on_dispatch=partial(charge, 1)) as second,
    ):
        running = [[engine.submit(prompt, GREEDY) for prompt in PROMPTS[:3]] for engine in (first, second)]
        together = [[generation.wait() for generation in generations] for generations in running]
    assert together == alone
    costs = [sum(meter.finish(generation.id) for generation in generations) for generations in running]
    assert costs == [pytest.approx(sum(own)) for own in held]
    assert min(costs) > 0


LONG = [[1 + (7 * i) % 200 for i in range(300)], [1 + (3 * i) % 200 for i in range(290)]]


def test_a_cached_prefix_changes_no_bit_of_the_output(model: Model) -> None:
    """Prompts that begin alike, one after the other: also with the tokens that a penalty counts in what is cached, and
    whole prompts again. Who asks for the prompt's log-probabilities gets all of them."""
    prompts = [LONG[0], LONG[0][:200] + [7] * 40, LONG[0], LONG[0][:256], [3, *LONG[0]]]
    settings = [
        GREEDY.model_copy(update={"repetition_penalty": penalty, "prompt_logprobs": scores})
        for penalty, scores in ((1.0, None), (1.3, None), (1.0, 1), (1.3, None), (1.0, None))
    ]
    alone = [generate(model, [prompt], own, SLOTS)[0] for prompt, own in zip(prompts, settings, strict=True)]
    with Engine(model, SLOTS) as engine:
        running = []
        for prompt, own in zip(prompts, settings, strict=True):
            running.append(engine.submit(prompt, own))
            assert running[-1].wait() == alone[len(running) - 1]
        assert [generation.cached_tokens for generation in running] == [0, 128, 0, 128, 0]
        assert len(running[2].prompt_tokens) == len(LONG[0]) - 1
        assert engine.stats.cached_tokens == 256
        assert engine.stats.prefill_tokens == sum(map(len, prompts)) - 256


def test_turns_of_a_conversation_compute_what_is_new(model: Model) -> None:
    """And a batch that is refused leaves nothing behind."""
    generator, turns = Generator(model, SLOTS), [LONG[0][:150], LONG[1][:140]]
    for _ in range(3):
        found = generator(turns, GREEDY)
        assert found == generate(model, turns, GREEDY, SLOTS)
        turns = [[*turn, *one.token_ids, 7, 8] for turn, one in zip(turns, found, strict=True)]
        with pytest.raises(ContextLengthError):
            generator([turns[0], [1] * 10_000], GREEDY)
    assert generator.stats.cached_tokens == 2 * 2 * 128


@pytest.mark.slow
def test_requests_that_give_up_their_pages_make_the_same_tokens_again(model: Model) -> None:
    """Four pages in two slots, of which both need three: sampled, with a stop, and with the prompt's log-probabilities.
    Every token comes once."""
    changes: tuple[dict[str, Any], ...] = ({}, {"temperature": 1.0, "seed": 3}, {"prompt_logprobs": 1}, {})
    settings = [GREEDY.model_copy(update={"max_tokens": 240, **change}) for change in changes]
    prompts = [[65 + number] * 20 for number in range(4)]
    alone = [generate(model, [prompt], own, SLOTS)[0] for prompt, own in zip(prompts, settings, strict=True)]
    with Engine(model, SLOTS, cache_tokens=512) as engine:
        with held(engine):
            running = [engine.submit(prompt, own) for prompt, own in zip(prompts, settings, strict=True)]
        events = [list(generation) for generation in running]
        assert engine.stats.given_up > 0
    for one, expected in zip(events, alone, strict=True):
        assert collect(one) == expected
    assert len(running[2].prompt_tokens) == 19


def test_a_cache_that_holds_no_context_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"cache_tokens=100 does not hold a context of 320 tokens; nearest: 320"):
        Engine(model, SLOTS, cache_tokens=100)
