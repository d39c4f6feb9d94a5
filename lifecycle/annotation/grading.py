"""Grades of documents by a language model: a sample is asked for, which then teaches a classifier that sees them all
(FineWeb-Edu: Penedo et al. 2024, arXiv:2406.17557, section 4; `data/measures/classifier_training.py`).

What must hold: a grade is what the model says, and no answer without one is taken for a grade.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle.annotation.asking import ask_missing
from lifecycle.annotation.journal import Journal, Row
from lifecycle.annotation.prompts import Prompt, columns_of
from lifecycle.annotation.respondents import Question, Respondent
from lifecycle.annotation.sample import drawn_documents, drawn_numbers
from lifecycle.core.progress import Progress
from lifecycle.evals.chat_client import Answer

_NUMBER = r"(-?\d+(?:\.\d+)?)(?!\w|[.,]\d)(?:\s*(?:/|out of)\s*(\d+))?(?!\s*(?:to|or|-|\u2013)\s*\d)"
_SAID = re.compile(
    rf"\b(?:grade|score|rating|points)\b(?:\s*\([^)\n]{{0,40}}\))?[^\w\n-]*(?:is\b[^\w\n-]*)?{_NUMBER}", re.IGNORECASE
)
_ALONE = re.compile(rf"[\s*_\"'.]*{_NUMBER}[\s*_\"'.]*")


@dataclass(frozen=True)
class Grading:
    """What is asked: of `most` documents, of each the first `chars` characters, for a grade from `low` to `high`."""

    prompt: Prompt
    most: int = 2000
    seed: int = 0
    low: float = 0
    high: float = 5
    chars: int = 8000

    def question(self, row: Mapping[str, Any]) -> Question:
        """The question about a document."""
        shown = {"text": row["text"][: self.chars], "low": f"{self.low:g}", "high": f"{self.high:g}"}
        about = {"id": row["id"], "content": row["content"].hex(), "source": row["source"]}
        return Question(row["id"], self.prompt.filled(columns_of(row) | shown), about)


@dataclass(frozen=True)
class Graded:
    """Of a sample: documents with a grade, by grade; those without, by reason; and those that had an answer before."""

    grades: dict[float, int]
    faults: dict[str, int]
    before: int


def grade_documents(
    folder: Path, out: Path, respondent: Respondent, grading: Grading, progress: Progress, sampling: Mapping[str, Any]
) -> Graded:
    """Writes a row for each graded document of the sample: `id`, `content` (the hash of its text), `source`, `score`,
    `prompt`, `model`. Beside it, `OUT.journal` keeps every answer: another run asks only for what is not in it.

    `folder` is an artifact of stage `documents`, `sampling` how the respondent answers. Raises what `ask_missing` and
    `Journal` raise.
    """
    said = {"prompt": grading.prompt.version, "model": respondent.name}
    scale = {"low": grading.low, "high": grading.high, "chars": grading.chars}

    def rows_of(question: Question, answer: Answer) -> list[Row] | str:
        grade = grade_in(answer, grading.low, grading.high)
        return grade if isinstance(grade, str) else [{**question.about, "score": grade, **said}]

    numbers = drawn_numbers(folder, grading.most, grading.seed)
    with Journal(out.with_name(f"{out.name}.journal"), {**said, **scale, **sampling}) as journal:
        progress.start("grading", len(numbers))
        questions = map(grading.question, drawn_documents(folder, numbers))
        asked = ask_missing(journal, respondent, questions, rows_of, progress)
        journal.write(out, asked.keys)
        grades = Counter(row["score"] for row in journal.rows(asked.keys))
        return Graded(dict(sorted(grades.items())), journal.faults(asked.keys), asked.before)


def grade_in(answer: Answer, low: float, high: float) -> float | str:
    """The grade in an answer, or why there is none. The last one that it names counts: reasons come before it."""
    if answer.finish_reason == "length":
        return "cut off"
    found = _ALONE.fullmatch(answer.text) or next(reversed([*_SAID.finditer(answer.text)]), None)
    if found is None:
        return "no grade"
    grade, scale = float(found[1]), found[2]
    if not low <= grade <= high or scale not in (None, f"{high:g}"):
        return "a grade on another scale"
    return grade
