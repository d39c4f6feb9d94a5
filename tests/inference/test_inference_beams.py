"""Beam search: against an exhaustive search, against transformers, and in the engine's programs."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.inference.beam_search import BeamPages, beam_search
from lifecycle.inference.beams import BeamConfig, Beams, Hypothesis
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.pages import PagePlan
from lifecycle.inference.sampling import SamplingParams

EXAMPLES = json.loads((Path(__file__).parent.parent / "golden/beams.json").read_text())
VOCAB, LENGTH, STOP = 3, 4, 0


def following(table: dict[tuple[int, ...], list[float]], tokens: tuple[int, ...], most: int) -> Any:
    pairs = enumerate(table[tokens])
    return sorted(pairs, key=lambda pair: -pair[1])[:most]


def searched(config: BeamConfig, length: int, table: Any, most: int) -> list[Hypothesis]:
    beams = Beams(config, length, 1, lambda tokens: tokens[-1] == STOP)
    while beams.running:
        beams.step([following(table, beam.tokens, most) for beam in beams.running])
    return beams.finished


def table_of(seed: int, vocab: int, length: int, scale: float) -> dict[tuple[int, ...], list[float]]:
    """Log-probabilities of the next token after each text."""
    rng = np.random.default_rng(seed)
    table: dict[tuple[int, ...], list[float]] = {}
    for size in range(length):
        for tokens in product(range(vocab), repeat=size):
            scores = rng.normal(size=vocab) * scale
            table[tokens] = (scores - np.log(np.exp(scores).sum())).tolist()
    return table


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([-1.0, 0.0, 0.7, 2.0]), st.sampled_from([0.5, 3.0]))
def test_with_a_beam_for_each_beginning_it_is_an_exhaustive_search(seed: int, penalty: float, scale: float) -> None:
    table = table_of(seed, VOCAB, LENGTH - 1, scale)
    every = []
    for size in range(1, LENGTH):
        for tokens in product(range(VOCAB), repeat=size):
            if STOP not in tokens[:-1] and (tokens[-1] == STOP or size == LENGTH - 1):
                logprob = sum(table[tokens[:place]][token] for place, token in enumerate(tokens))
                every.append((logprob / size**penalty, tokens))
    config = BeamConfig(num_beams=16, length_penalty=penalty, early_stopping="never")
    found = searched(config, LENGTH - 1, table, VOCAB)
    best = sorted(every, key=lambda own: -own[0])
    assert found[0].tokens == best[0][1] and found[0].score == pytest.approx(best[0][0])
    assert [own.tokens for own in found] == [tokens for _, tokens in best[: len(found)]] and len(found) >= len(every)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_one_beam_is_greedy(seed: int) -> None:
    table, tokens = table_of(seed, VOCAB, LENGTH, 1.0), ()
    while len(tokens) < LENGTH and STOP not in tokens:
        tokens = (*tokens, max(range(VOCAB), key=table[tokens].__getitem__))
    (found,) = searched(BeamConfig(num_beams=1, early_stopping=True), LENGTH, table, VOCAB)
    assert found.tokens == tokens


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda own: f"{own['num_beams']}-{own['length_penalty']}")
def test_outputs_and_scores_are_those_of_transformers(example: dict[str, Any]) -> None:
    """`make_beam_golden.py`: a model that is a table of the next token's logits by the last two tokens."""
    logits = np.random.default_rng(example["seed"]).normal(size=(12, 12, 12)) * 2
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    config = BeamConfig(**{name: example[name] for name in ("num_beams", "length_penalty", "early_stopping")})
    beams = Beams(config, example["max_tokens"], len(example["stop_ids"]), lambda own: own[-1] in example["stop_ids"])
    while beams.running:
        texts = [(*example["prompt"], *beam.tokens) for beam in beams.running]
        beams.step([sorted(enumerate(logprobs[text[-2], text[-1]].tolist()), key=lambda x: -x[1]) for text in texts])
    assert [list(own.tokens) for own in beams.finished] == example["outputs"]
    np.testing.assert_allclose([own.score for own in beams.finished], example["scores"], rtol=1e-5)


@pytest.mark.long
def test_the_engines_programs_find_what_whole_forward_passes_find(model: Model) -> None:
    """Prompts that end before, at and behind a page's end, more of them than fit at once; beams part and die."""
    from tests.inference.test_inference_engine import whole_logits

    config, prompts = BeamConfig(num_beams=2), [[65, 66], [*range(1, 127)], [7] * 128, [70, 71, 72]]

    def after(text: tuple[int, ...]) -> list[tuple[int, float]]:
        tokens = np.zeros((1, model.config.max_seq_len), np.int32)
        tokens[0, : len(text)] = text
        row = np.asarray(whole_logits(model.config, model.params, tokens), np.float64)[len(text) - 1]
        row -= np.log(np.exp(row).sum())
        return [(int(i), float(row[i])) for i in np.argsort(-row)[:20]]

    found = beam_search(model, prompts, config, 6, num_slots=2)
    for prompt, outputs in zip(prompts, found, strict=True):
        beams = Beams(config, 6, len(model.stop_ids), lambda own: own[-1] in model.stop_ids)
        while beams.running:
            beams.step([after((*prompt, *beam.tokens)) for beam in beams.running])
        assert [own.tokens for own in outputs] == [own.tokens for own in beams.finished]
        np.testing.assert_allclose([own.score for own in outputs], [own.score for own in beams.finished], atol=1e-4)
    greedy = generate(model, prompts, SamplingParams(temperature=0.0, max_tokens=6), 2)
    alone = beam_search(model, prompts, BeamConfig(num_beams=1), 6, num_slots=2)
    assert [[*own[0].tokens] for own in alone] == [one.token_ids for one in greedy]
    stopped = beam_search(model, prompts[:1], BeamConfig(num_beams=1), 6, [greedy[0].text[1:2]], num_slots=2)
    assert stopped[0][0].text == greedy[0].text[:1]


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 40), st.sampled_from([None, 3, 9]))
def test_beams_see_what_they_and_their_ancestors_wrote(data: st.DataObject, length: int, window: int | None) -> None:
    """Pages of 4 positions as lists: each holds what was written last."""
    size, beams, steps = 4, 3, 14
    each = -(-(length + steps) // size) if window is None else (window + length) // size + 2
    pages = BeamPages(PagePlan(size, (length,), {"kind": 2 * beams * each}, {"kind": window}), 2, 1)
    stored, texts = np.full((2 * beams * each, size), -1), [[*range(length)]]
    pages.extend(0, length)
    for position, token in enumerate(texts[0]):
        stored[pages.tables[0]["kind"][position // size], position % size] = token
    for position in range(length, length + steps):
        parents = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=beams))
        for source, target in pages.fork(parents, position)["kind"]:
            stored[target] = stored[source]
        texts = [[*texts[parent], 100 * position + number] for number, parent in enumerate(parents)]
        for text, tables in zip(texts, pages.tables, strict=True):
            stored[tables["kind"][position // size], position % size] = text[-1]
        first = 0 if window is None else max(0, position - window + 1)
        for text, tables in zip(texts, pages.tables, strict=True):
            seen = [int(stored[tables["kind"][p // size], p % size]) for p in range(first, position + 1)]
            assert seen == text[first:] and min(tables["kind"][first // size :]) >= 2 * beams * each // 2


def test_more_beams_than_can_be_served_are_refused_by_name(model: Model) -> None:
    with pytest.raises(ValueError, match="num_beams"):
        BeamConfig(num_beams=17)  # pyrefly: ignore[bad-argument-type] - what is tested
    with pytest.raises(ValueError, match="the context holds 320 tokens"):
        beam_search(model, [[1] * 319], BeamConfig(), 2)
