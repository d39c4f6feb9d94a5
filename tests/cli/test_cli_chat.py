"""`lifecycle chat`: what is typed, and what Ctrl-C does."""

import builtins
from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from lifecycle.cli.chat import Talk, _ask
from lifecycle.cli.sampling import Sampling
from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Event, Generation
from lifecycle.inference.sampling import SamplingParams
from lifecycle.testing.models import random_model

SIZES = {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "max_seq_len": 256}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    model = random_model(3, "a" * 64, SamplingParams(stop_ids=()), **SIZES)
    with Engine(model, num_slots=1) as engine:
        yield engine


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO(), width=200)


def talk(console: Console, engine: Engine, seed: int | None = None) -> Talk:
    params = Sampling(max_tokens=4, seed=seed).over(engine.model.defaults)
    return Talk(console, engine, params, [{"role": "system", "content": "s"}])


def shown(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    left = list(lines)

    def read(_: str) -> str:
        line = left.pop(0)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)


def test_a_question_may_have_several_lines(monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    typed(monkeypatch, "one\\", "  two\\", "three", "pasted\nas a whole", "/quit")
    assert [_ask(console) for _ in range(3)] == ["one\n  two\nthree", "pasted\nas a whole", None]


def test_interrupting_the_prompt_drops_the_line_and_the_end_of_input_ends(
    monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    typed(monkeypatch, "half\\", KeyboardInterrupt, "whole", EOFError)
    assert [_ask(console), _ask(console)] == ["whole", None] and "Ctrl-D ends" in shown(console)


@pytest.mark.slow
def test_interrupting_an_answer_keeps_what_came_and_frees_the_engine(
    monkeypatch: pytest.MonkeyPatch, console: Console, engine: Engine
) -> None:
    chat = talk(console, engine)
    chat.params = chat.params.model_copy(update={"max_tokens": None})
    whole = Generation.__iter__

    def interrupted(generation: Generation) -> Iterator[Event]:
        for event in whole(generation):
            yield event
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Generation, "__iter__", interrupted)
        chat.take("long")
    assert chat.turns[-1]["role"] == "assistant" and "(stopped)" in shown(console)
    chat.params = chat.params.model_copy(update={"max_tokens": 4})
    chat.take("next")  # there is one slot, so the first answer has ended
    assert [turn["role"] for turn in chat.turns] == ["user", "assistant"] * 2


def test_a_seed_gives_the_same_conversation_and_other_answers_to_retries(console: Console, engine: Engine) -> None:
    first, second = talk(console, engine, seed=7), talk(console, engine, seed=7)
    for chat in (first, second):
        chat.take("q")
    assert first.turns == second.turns
    first.take("/retry")
    assert first.turns[0] == second.turns[0] and first.turns[1] != second.turns[1]
    first.take("/new")
    first.take("/retry")
    assert first.turns == []


def test_a_conversation_that_exceeds_the_context_loses_its_oldest_turns(console: Console, engine: Engine) -> None:
    chat = talk(console, engine)
    for text in ("a" * 60, "b" * 60, "c" * 60):
        chat.take(text)
    assert chat.turns[0]["content"][0] in "bc" and "without the oldest turns" in shown(console)
    before = list(chat.turns)
    chat.take("d" * 400)
    assert "too long" in shown(console) and chat.turns == before, "the conversation goes on without it"
