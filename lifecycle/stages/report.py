"""Stage `report`: asks the final model a few held-out questions and writes what the whole run came to."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifecycle.core.artifact import write_text
from lifecycle.core.config import digest
from lifecycle.core.progress import Progress
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.report.blocks import Exchange
from lifecycle.report.contents import build_report
from lifecycle.report.html import render_html
from lifecycle.report.machine import machine_facts
from lifecycle.report.markdown import render_markdown
from lifecycle.report.numbers import collect
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.text.rows import read_rows

NUM_QUESTIONS = 6
MAX_ANSWER = 64  # tokens; the rows' answers are of one sentence


@dataclass(frozen=True)
class Question:
    """A held-out row as a prompt for the model, and what the row answers."""

    ids: list[int]
    text: str
    reference: str


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    model = load_bundle(inputs["export"].path)
    progress.note("asking held-out questions")
    samples = ask(model, held_out_questions(inputs["rows"].path / "chat-heldout.jsonl", model))
    numbers = collect(config.name, inputs, samples, config.price, machine_facts())
    report = build_report(numbers)
    write_text(out / "report.html", render_html(report))
    write_text(out / "report.md", render_markdown(report))
    return Outcome({"samples": [asdict(sample) for sample in samples]})


def ask(model: Model, questions: list[Question]) -> list[Exchange]:
    """The model's likeliest answers."""
    greedy = SamplingParams(temperature=0, max_tokens=MAX_ANSWER)
    answers = generate(model, [question.ids for question in questions], greedy) if questions else []
    return [
        Exchange(question.text, answer.text, question.reference)
        for question, answer in zip(questions, answers, strict=True)
    ]


def held_out_questions(path: Path, model: Model) -> list[Question]:
    """The rows with the smallest hashes whose question leaves room for an answer: the same ones in every run."""
    rows = sorted((row for _, row in read_rows(path)), key=digest)
    found: list[Question] = []
    for question in _questions(rows, model):
        if len(question.ids) + MAX_ANSWER <= model.config.max_seq_len:
            found.append(question)
        if len(found) == NUM_QUESTIONS:
            break
    return found


def _questions(rows: list[dict[str, Any]], model: Model) -> Iterator[Question]:
    for row in rows:
        prompt, answer = row.get("prompt"), row.get("completion")
        if isinstance(prompt, str) and isinstance(answer, str):  # plain text, as fine-tuning saw it
            yield Question([model.tokenizer.bos_id, *model.tokenizer.encode(prompt)], prompt, answer)
        elif (turns := _turns(row)) is not None:
            ids = model.template.render(turns[:-1], add_generation_prompt=True).ids
            yield Question(ids, turns[-2]["content"], turns[-1]["content"])


def _turns(row: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """The messages up to the first answer; None for a row without one, or without anything before it."""
    messages = (
        row["messages"]
        if "messages" in row
        else [*_said(row, "prompt", "user"), *_said(row, "completion", "assistant")]
    )
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), 0)
    return messages[: first + 1] if first else None


def _said(row: Mapping[str, Any], column: str, role: str) -> list[dict[str, str]]:
    value = row.get(column, [])
    return [{"role": role, "content": value}] if isinstance(value, str) else value
