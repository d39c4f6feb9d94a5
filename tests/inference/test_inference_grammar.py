"""Constrained output: it is in its grammar, whatever the model wants, and the rest of the batch does not notice."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from llguidance import LLMatcher, LLParserLimits
from tokenizers import decoders, models, pre_tokenizers, trainers

from lifecycle.inference import grammar
from lifecycle.inference.engine import Engine
from lifecycle.inference.generate import generate
from lifecycle.inference.generation import Assembler, EngineError, Token
from lifecycle.inference.grammar import MAX_GRAMMAR, Constraint, GrammarError, Grammars, no_masks
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.scheduler import Scheduler
from lifecycle.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine_turns import held

SLOTS, CACHE = 2, 512  # as in the other tests of the engine
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 31}, "maxItems": 3},
        "kind": {"enum": ["hot", "co\u2603ld"]},
    },
    "required": ["city", "days", "kind"],
    "additionalProperties": False,
}
JSON = LLMatcher.grammar_from_json_schema(SCHEMA, defaults={"whitespace_flexible": False})
REGEX = LLMatcher.grammar_from_regex(r"[a-f]{3}-[0-9]+\.")
FORCED = r'start: "Kiel or u\u0308 some\n words"'  # no choice, but for how it is cut into tokens
GROWING = LLMatcher.grammar_from_regex("(.*a.{200}|b){1,100}")  # needs more and more states


def ask(grammar: str | None, **settings: Any) -> SamplingParams:
    given: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 120, "stop_ids": (), **settings}
    return SamplingParams(grammar=grammar, **given)


@pytest.fixture(scope="module", params=["sentencepiece", "hf"])
def words(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Tokenizers of longer tokens: one that puts a space before every text, and a byte-level one."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    texts = ['{"city": "Kiel", "days": [1, 12], "kind": "hot"} and some words'] * 20
    if request.param == "sentencepiece":
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_prefix=str(folder / "tokenizer"), vocab_size=320, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        return load_tokenizer(folder / "tokenizer.model")
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=320, special_tokens=["</s>"], initial_alphabet=alphabet)
    )
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return load_tokenizer(folder)


def allowed(grammars: Grammars, constraint: Constraint, size: int) -> np.ndarray:
    masks = no_masks(1, size)
    grammars.fill({0: constraint}, masks)
    return np.flatnonzero(np.unpackbits(masks[0].view(np.uint8), bitorder="little"))


def test_any_choice_of_allowed_tokens_of_any_tokenizer_gives_the_grammars_text(words: Tokenizer) -> None:
    """Also a text that begins with a space, where decoding otherwise leaves one out; never an id above the words."""
    size = words.vocab_size + 45  # of a padded model
    grammars, draw = Grammars(words, (), size), np.random.default_rng(0)
    spaced = LLMatcher.grammar_from_regex(" [a-c]{2}")
    for own in [JSON, spaced, FORCED] * 6:
        constraint = grammars.constraint(own).copy()
        output = Assembler(words, ask(own), (), 500)
        while output.finish_reason is None:
            token = int(draw.choice(allowed(grammars, constraint, size)))
            output.push(Token(token, 0.0), constraint.push(token))
        event = output.take()
        assert event is not None and event.finish_reason == "stop"
        if own == spaced:
            assert re.fullmatch(" [a-c]{2}", event.text)
        elif own == FORCED:
            assert event.text == "Kiel or u\u0308 some\n words"
        else:
            value = json.loads(event.text)
            assert list(value) == list(SCHEMA["properties"]) and len(value["city"]) <= 5


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_an_output_that_ends_is_in_its_grammar(model: Model, temperature: float) -> None:
    grammars = [JSON, REGEX] * 4
    params = [ask(own, seed=i, temperature=temperature) for i, own in enumerate(grammars)]
    found = generate(model, [[65 + i] for i in range(8)], params, SLOTS)
    for own, completion in zip(grammars, found, strict=True):
        if own == JSON:
            assert completion.finish_reason == "stop"  # this schema bounds what satisfies it
            value = json.loads(completion.text)
            assert list(value) == ["city", "days", "kind"] and value["kind"] in SCHEMA["properties"]["kind"]["enum"]
            assert len(value["city"]) <= 5 and all(1 <= day <= 31 for day in value["days"])
            assert completion.text == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        elif completion.finish_reason == "stop":
            assert re.fullmatch(r"[a-f]{3}-[0-9]+\.", completion.text)
        else:  # of the greedy model, which repeats a digit for ever
            assert re.fullmatch(r"[a-f]{3}-[0-9]+", completion.text) and len(completion.tokens) == 120


def test_what_cannot_go_on_ends_at_once_and_what_can_ends_by_a_stop_id(model: Model) -> None:
    with Engine(model, SLOTS) as engine:
        certain = engine.submit([65], ask('start: "yes"')).wait()
        empty = engine.submit([65], ask("start: ")).wait()
        longer = engine.submit([65], ask('start: "a"+', logit_bias=((97, -100.0),), stop_ids=None)).wait()
        named = engine.submit([65], ask('start: "a"+', logit_bias=((97, -100.0),))).wait()
    assert (certain.text, certain.finish_reason, len(certain.tokens)) == ("yes", "stop", 3)
    assert (empty.text, empty.finish_reason) == ("", "stop")
    assert (longer.text, longer.finish_reason) == ("a", "stop")
    assert longer.token_ids[-1] in {model.tokenizer.eos_id, *model.stop_ids}
    assert (named.text, named.finish_reason) == ("a", "stop")  # although the request has no stop ids of its own


def test_the_rest_of_the_batch_is_as_without_a_grammar_in_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes several steps of a dispatch, in which a row with a grammar makes one."""
    monkeypatch.setattr(Scheduler, "decode_steps", lambda self, _=False: 5 if self.decoding else 0)
    free = ask(None, max_tokens=40)
    alone = generate(model, [[65, 66]], free, SLOTS)[0]
    together = generate(model, [[67], [65, 66], [68]], [ask(JSON), free, ask(REGEX)], SLOTS)
    assert together[1] == alone
    assert together[0] == generate(model, [[67]], ask(JSON), SLOTS)[0]
    assert generate(model, [[65, 66]], free, SLOTS)[0] == alone  # in a slot that had a grammar
    made: list[dict[str, int]] = []
    with Engine(model, SLOTS, on_dispatch=lambda _, tokens: made.append(dict(tokens))) as engine:
        with held(engine):
            bound, other = engine.submit([67], ask("start: /[a-z]{30}/")), engine.submit([65, 66], free)
        assert other.wait() == alone and len(bound.wait().tokens) == 30
    assert {bound.id: 1, other.id: 5} in made and all(tokens.get(bound.id, 1) == 1 for tokens in made)


def test_log_probabilities_are_those_of_the_model(model: Model) -> None:
    first = generate(model, [[65]], ask(None, temperature=0, max_tokens=1, top_logprobs=20), SLOTS)[0].tokens[0]
    forced = generate(model, [[65]], ask('start: "q"', top_logprobs=20), SLOTS)[0].tokens[0]
    assert forced.id == ord("q") and forced.logprob < first.logprob and forced.top == first.top


def test_special_tokens_are_shown_if_they_are_part_of_the_grammar(model: Model) -> None:
    special = model.tokenizer.special_ids["<|im_start|>"]
    marked = f'start: "a" <[{special}]> "b"'
    params = [ask(marked), ask(marked, shown_ids=(special,))]
    hidden, shown = (completion.text for completion in generate(model, [[65]] * 2, params, SLOTS))
    assert (hidden, shown) == ("ab", "a<|im_start|>b")


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        (LLMatcher.grammar_from_regex("(?=a)b"), "look-around"),
        (LLMatcher.grammar_from_regex(r"[^\s\S]"), "no text satisfies it"),
        (LLMatcher.grammar_from_json_schema({"$ref": "#"}), "no text satisfies it"),
        (LLMatcher.grammar_from_json_schema({"not": {}}), 'Unimplemented keys: \\["not"\\]'),
        (LLMatcher.grammar_from_json_schema({"type": "integer", "minimum": 3, "maximum": 1}), "Unsatisfiable"),
        ("start: other", 'unknown name: "other"'),
        ("", "Empty grammar"),
        ("{", "EOF"),
        ("x" * (MAX_GRAMMAR + 1), "characters"),
    ],
    ids=range(9),
)
def test_a_faulty_grammar_is_refused_before_it_is_queued(model: Model, faulty: str, reason: str) -> None:
    with Engine(model, SLOTS) as engine:
        with pytest.raises(GrammarError, match=reason) as error:
            engine.submit([65], ask(faulty))
        with pytest.raises(GrammarError, match=reason):
            engine.compile(faulty)
        assert engine.stats.waiting == engine.stats.active == 0
    assert len(str(error.value)) < 600


def test_a_grammar_that_needs_too_much_work_ends_its_request_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "LIMITS", LLParserLimits(max_lexer_states=150, verbose_errors=False))
    with Engine(model, SLOTS) as engine:
        other = engine.submit([66], ask(JSON))
        stuck = engine.submit([65], ask(GROWING, max_tokens=300))
        with pytest.raises(EngineError, match=r"GrammarError: grammar: .*states") as error:
            stuck.wait()
        assert isinstance(error.value.__cause__, GrammarError)
        assert other.wait().finish_reason == "stop"
        assert engine.is_alive and engine.stats.active == 0
        assert engine.submit([65], ask(None, max_tokens=5)).wait().finish_reason == "length"


def test_a_request_that_gave_up_its_slot_goes_through_its_grammar_again(model: Model) -> None:
    """Its tokens are made a second time, from the beginning of the grammar."""
    long = ask("start: /[a-c]{40}/", max_tokens=60)
    with Engine(model, SLOTS, cache_tokens=CACHE) as engine:
        alone = engine.submit([65] * 230, long).wait()
        prompts = ([65] * 230, [66] * 250, [67] * 250)  # two of them need six pages of four
        with held(engine):
            asked = [engine.submit(prompt, long) for prompt in prompts]
        found = [generation.wait() for generation in asked]
        given_up = engine.stats.given_up
    assert given_up > 0 and found[0].token_ids == alone.token_ids
    assert all(re.fullmatch("[a-c]{40}", completion.text) for completion in found)


def test_nothing_is_compiled_for_a_grammar_after_the_warm_up(model: Model, compiled: list[str]) -> None:
    with Engine(model, num_slots=SLOTS, warm_up=True) as engine:
        compiled.clear()
        for generation in [engine.submit([65], ask(own)) for own in (JSON, None, REGEX)]:
            generation.wait()
        assert compiled == []
