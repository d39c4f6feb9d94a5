"""Bad words and minimal lengths: against a plain rule over the whole text, and in the engine."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.inference.bad_words import spellings
from lifecycle.inference.chunks import Chunk
from lifecycle.inference.engine import Engine
from lifecycle.inference.forbidden import ForbiddenError, forbidden_rows, newest, without_forbidden
from lifecycle.inference.generate import generate
from lifecycle.inference.generation import Completion, EngineError
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import History, SamplingParams
from lifecycle.text.byte_tokenizer import ByteTokenizer
from tests.engine_turns import held

SLOTS = 2
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, stop_ids=())
IDS = st.integers(0, 3)
WORDS = st.lists(st.tuples(st.lists(IDS, min_size=1, max_size=4), st.integers(0, 20)), max_size=6)


@jax.jit
def step(history: History, token: Any, active: Any, words: Any, until: Any, position: Any) -> Any:
    history = history.with_token(token, active)
    logits = jnp.zeros((2, 4))
    return history, without_forbidden(words, until, history.recent, position, None, logits)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS, st.lists(IDS, min_size=1, max_size=20), st.lists(st.tuples(IDS, IDS, st.booleans()), max_size=12))
def test_what_is_impossible_is_what_would_complete_a_sequence(
    first: Any, second: Any, prompt: list[int], made: list[tuple[int, int, bool]]
) -> None:
    """Two rows with sequences of their own, one of which sometimes pauses."""
    words, until = (np.stack(own) for own in zip(forbidden_rows(first), forbidden_rows(second), strict=True))
    texts, history = [list(prompt), []], History.empty(2, 4)
    history = History(history.asked, history.made, jnp.stack([newest(prompt), newest([])]))
    for one, other, is_active in made:
        texts = [[*texts[0], one], [*texts[1], other] if is_active else texts[1]]
        positions = np.array([len(text) for text in texts])
        active = np.array([True, is_active])
        history, found = step(history, np.array([one, other]), active, words, until, positions)
        for row, every in enumerate((first, second)):
            ends = [token for token in range(4) if _is_forbidden([*texts[row], token], every)]
            assert np.flatnonzero(np.isneginf(found[row])).tolist() == ends
    assert np.asarray(history.made).sum() == len(made) + sum(active for *_, active in made)


def _is_forbidden(text: list[int], every: list[tuple[list[int], int]]) -> bool:
    return any(text[-len(ids) :] == ids and len(text) - 1 < until for ids, until in every)


def ids_of(model: Model, prompts: list[list[int]], own: list[SamplingParams], **options: Any) -> list[list[int]]:
    return [completion.token_ids for completion in generate(model, prompts, own, SLOTS, **options)]


def has(text: list[int], ids: tuple[int, ...]) -> bool:
    return any(text[place : place + len(ids)] == list(ids) for place in range(len(text)))


def test_the_output_avoids_its_own_words_and_changes_nothing_for_the_others(model: Model) -> None:
    """What comes before a word's last token stays as it was; a word may begin in the prompt; greedy and sampled."""
    for own in (GREEDY, GREEDY.model_copy(update={"temperature": 1.0, "seed": 3})):
        plain = ids_of(model, [[65, 66]] * 2, [own] * 2)[0]
        pair, across = (plain[3], plain[4]), (65, 66, plain[0])
        without = [own.model_copy(update={"bad_words_ids": (ids,)}) for ids in (pair, across, (9, plain[1]))]
        found = ids_of(model, [[65, 66]] * 4, [*without, own])
        assert has(plain, pair) and not has(found[0], pair) and found[0][:4] == plain[:4]
        assert found[1][0] != plain[0] and not has([65, 66, *found[1]], across)
        assert found[2] == found[3] == plain  # 9 never comes before


@pytest.mark.slow
def test_a_request_that_begins_again_or_shares_a_prompt_avoids_the_same_words(model: Model) -> None:
    prompt = [i % 250 for i in range(140)]  # a chunk that is shared, and a rest
    (plain,) = ids_of(model, [prompt], [GREEDY])
    own = GREEDY.model_copy(update={"bad_words_ids": ((plain[0], plain[1]), (prompt[-1], plain[0]), (plain[5],))})
    (expected,) = ids_of(model, [prompt], [own])
    assert expected[0] != plain[0] and plain[5] not in expected
    with Engine(model, SLOTS, cache_tokens=512) as engine:
        long = own.model_copy(update={"max_tokens": 170})
        with held(engine):
            first, second = (engine.submit(prompt, long) for _ in range(2))
        assert first.wait().token_ids == second.wait().token_ids
        again = engine.submit(prompt, own)
        assert again.wait().token_ids == expected
        assert again.cached_tokens == 128 and engine.stats.given_up > 0


def test_nothing_ends_an_output_before_its_minimal_length(model: Model) -> None:
    """Neither an id nor a text, whose first part may be older; afterwards both do."""
    plain = ids_of(model, [[65]], [GREEDY])[0]
    ends = GREEDY.model_copy(update={"stop_ids": (plain[0], 7), "max_tokens": 40})
    short, longer = generate(model, [[65]] * 2, [ends, ends.model_copy(update={"min_tokens": 9})], SLOTS)
    assert len(short.tokens) == 1 and short.finish_reason == "stop"
    assert not {plain[0], 7} & {*longer.token_ids[:9]} and len(longer.tokens) >= 9
    say = GREEDY.model_copy(update={"logit_bias": ((97, 100.0),), "stop": ("aa",)})
    cut, whole = generate(model, [[65]] * 2, [say, say.model_copy(update={"min_tokens": 5})], SLOTS)
    assert (cut.text, whole.text, len(cut.tokens), len(whole.tokens)) == ("", "aaaaa", 2, 7)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bad_words_ids": tuple((n,) for n in range(64)), "bad_words": ("x",)}, "65 sequences .* room for 64"),
        ({"bad_words_ids": tuple((n,) for n in range(64)), "stop_ids": (70,), "min_tokens": 1}, "65 sequences"),
        ({"bad_words": ("a word of more than sixteen",)}, "one may have 16"),
        ({"bad_words_ids": ((1, 300),)}, "token id 300 is outside"),
        ({"min_tokens": 13}, "min_tokens: 13 of an output of at most 12"),
        ({"min_tokens": 1, "grammar": "start: /a+/"}, "min_tokens: a grammar"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(model: Model, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ForbiddenError, match=reason):
        generate(model, [[65]], GREEDY.model_copy(update=change), SLOTS)


def test_a_request_that_leaves_no_token_fails_alone(model: Model) -> None:
    own = {"grammar": "start: /a{5}/", "bad_words_ids": ((97, 97),)}
    with Engine(model, SLOTS) as engine:
        failing, other = engine.submit([65], GREEDY.model_copy(update=own)), engine.submit([65], GREEDY)
        with pytest.raises(EngineError, match="request failed"):
            failing.wait()
        assert isinstance(other.wait(), Completion)


def test_a_word_is_spelled_as_a_text_begins_and_as_it_goes_on() -> None:
    class Spaced(ByteTokenizer):
        """Puts a space before a text, as SentencePiece's do; a space and a `c` are one token."""

        def encode(self, text: str) -> list[int]:
            return [1000 if byte == ord("\t") else byte for byte in f" {text}".replace(" c", "\t").encode()]

    assert spellings("cat", ByteTokenizer()) == ((99, 97, 116),)  # its bytes after a space end with these
    assert spellings("  cat", ByteTokenizer()) == spellings("cat", ByteTokenizer())
    assert spellings(" ", ByteTokenizer()) == ((32,),)
    assert spellings("cat", Spaced()) == ((1000, 97, 116), (99, 97, 116))


def test_a_dispatch_without_a_chunk_of_a_group_leaves_its_newest_tokens(model: Model) -> None:
    """The first slot of a group that prefills nothing may be decoding, with words that it must not complete."""
    with Engine(model, SLOTS) as engine:
        made = engine.submit([65, 66], GREEDY).wait().token_ids
        programs, table = engine._runner._programs, engine._runner._table
        before = np.asarray(programs._state.history.recent)
        assert made[-2] in before[0], "the newest but for the last one, which is fed by no step"
        programs.prefill(table.prompt_rows([Chunk(0, 0, 0, 16)], [[]]))
        np.testing.assert_array_equal(programs._state.history.recent, before)
