"""Samples of a model: held-out questions and its greedy answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle.core.config import digest
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.report.blocks import Exchange
from lifecycle.text.messages import text_of
from lifecycle.text.row_encoder import tools_of
from lifecycle.text.row_files import read_rows

NUM_QUESTIONS = 6
MAX_ANSWER = 64  # tokens; the rows' answers are one sentence long


@dataclass(frozen=True)
class Question:
    """A held-out row as a prompt for the model, with the row's own answer."""

    ids: list[int]
    text: str
    reference: str


def ask(model: Model, questions: Sequence[Question]) -> list[Exchange]:
    """The model's greedy answers."""
    greedy = SamplingParams(temperature=0, max_tokens=MAX_ANSWER)
    answers = generate(model, [question.ids for question in questions], greedy) if questions else []
    return [
        Exchange(question.text, answer.text, question.reference)
        for question, answer in zip(questions, answers, strict=True)
    ]


def held_out_questions(path: Path, model: Model) -> list[Question]:
    """The rows with the smallest hashes whose question leaves room for an answer: the same ones in every run."""
    rows = sorted((row for _, row in read_rows(path)), key=digest)
    chosen: list[Question] = []
    for question in _questions(rows, model):
        if len(question.ids) + MAX_ANSWER <= model.config.max_seq_len:
            chosen.append(question)
        if len(chosen) == NUM_QUESTIONS:
            break
    return chosen


def _questions(rows: list[dict[str, Any]], model: Model) -> Iterator[Question]:
    for row in rows:
        prompt, answer = row.get("prompt"), row.get("completion")
        if isinstance(prompt, str) and isinstance(answer, str):  # plain text, as in fine-tuning
            yield Question(model.tokenizer.begin(model.tokenizer.encode(prompt)), prompt, answer)
        elif (turns := _turns(row)) is not None:
            variables = row.get("chat_template_kwargs", {})
            ids = model.template.dated.render(
                turns[:-1], add_generation_prompt=True, tools=tools_of(row), variables=variables
            ).ids
            yield Question(ids, text_of(turns[-2]), text_of(turns[-1]))


def _turns(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The messages up to the first answer; None for a row without one in words, or without words before it."""
    messages = (
        row["messages"]
        if "messages" in row
        else [*_said(row, "prompt", "user"), *_said(row, "completion", "assistant")]
    )
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), 0)
    said = [message.get("content") for message in messages[first - 1 : first + 1]] if first else [None]
    return messages[: first + 1] if all(isinstance(content, str) and content for content in said) else None


def _said(row: Mapping[str, Any], column: str, role: str) -> list[dict[str, str]]:
    value = row.get(column, [])
    return [{"role": role, "content": value}] if isinstance(value, str) else value
