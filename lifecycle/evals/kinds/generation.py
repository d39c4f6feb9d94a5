"""Kind `generate`: whether greedy output, or the best of a beam search, passes a check against the row's answers. A row
has `prompt` and `answer`: one text, or a list of accepted texts."""

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from lifecycle.core.config import nearest
from lifecycle.core.progress import Progress
from lifecycle.evals.prompts import PromptTaskConfig
from lifecycle.evals.results import EvalResult, ScoredExample, summarise
from lifecycle.evals.scoring import CHUNK, fitting_rows
from lifecycle.evals.subject import Subject
from lifecycle.evals.tasks import TaskRow, is_text
from lifecycle.inference.beams import BeamConfig

# A minus belongs to a number unless it stands between two operands; commas only where they separate thousands.
NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?", re.ASCII)


def last_number(text: str) -> Decimal | None:
    """The value of the last number in a text: 1,234.50 for "so $1,234.50." As lm-evaluation-harness's GSM8K filter
    `flexible-extract`, except that numbers are compared by value: 18 equals 18.00."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


# By name: a function of (output, answer) that says whether the output passes.
CHECKS: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda output, answer: output.strip() == answer.strip(),
    "contains": lambda output, answer: answer in output,
    "last_number": lambda output, answer: last_number(output) == last_number(answer),
    "regex": lambda output, pattern: re.search(pattern, output) is not None,
}


def _known_check(name: str) -> str:
    if name not in CHECKS:
        raise ValueError(f"no such check{nearest(name, CHECKS)}")
    return name


type CheckName = Annotated[str, AfterValidator(_known_check), WithJsonSchema({"enum": list(CHECKS)})]


class GenerationTask(PromptTaskConfig):
    """The share of outputs that match one of the row's answers."""

    columns: ClassVar[tuple[str, ...]] = ("prompt", "answer")
    gold: ClassVar[str] = "answer"
    default_template: ClassVar[str] = "{{ prompt }}"

    check: CheckName = "exact"
    max_tokens: Annotated[int, Field(ge=1)] = 64
    stop: tuple[str, ...] = ()
    beams: Annotated[BeamConfig | None, Field(description="the best output of a beam search; none: greedy")] = None

    @model_validator(mode="after")
    def _answers_are_shown(self) -> Self:
        if self.check == "regex" and self.shots:
            raise ValueError("check: regex has patterns for answers, which solved examples would show; remove shots")
        return self

    def problem(self, columns: Mapping[str, Any]) -> str:
        """The fault in a row's columns; empty if there is none."""
        if not isinstance(columns.get("prompt"), str):
            return "expected a column `prompt` with text"
        wanted = _listed(columns.get("answer"))
        if not isinstance(wanted, list) or not wanted or not all(is_text(answer) for answer in wanted):
            return "expected a column `answer`: text, or a list of texts of which each is right"
        return PROBLEMS.get(self.check, lambda _: "")(wanted) or self.prompt_problem(columns)

    def shot(self, row: TaskRow) -> tuple[str, str]:
        """A row as a solved example: its prompt and the first of its answers."""
        return self.prompt(row), _listed(row.columns["answer"])[0]

    def score(self, rows: Sequence[TaskRow], subject: Subject, progress: Progress) -> EvalResult:
        """The share of prompts whose output passes the check.

        Rows that exceed the model's context are skipped and counted.
        """
        prompts = {row.id: self.prompt_ids(row, subject.encoder) for row in rows}
        lengths = {row.id: len(prompts[row.id]) + self.max_tokens for row in rows}
        fitting, skipped = fitting_rows(rows, lengths, subject.max_seq_len)
        outputs: list[str] = []
        progress.start(f"evaluate {self.name}", len(fitting))
        for begin in range(0, len(fitting), CHUNK):
            chunk = [prompts[row.id] for row in fitting[begin : begin + CHUNK]]
            outputs += subject.generate(chunk, self.max_tokens, self.stop, self.beams)
            progress.update(len(outputs))
        examples = [self._example(row, output) for row, output in zip(fitting, outputs, strict=True)]
        return summarise(self.name, self.kind, self.check, self.definition, examples, skipped=skipped)

    def passes(self, output: str, answer: str | Sequence[str]) -> bool:
        """Whether an output matches one of the accepted answers."""
        return any(CHECKS[self.check](output, one) for one in _listed(answer))

    def _example(self, row: TaskRow, output: str) -> ScoredExample:
        prompt, answer = row.columns["prompt"], row.columns["answer"]
        detail = {"prompt": prompt, "output": output, "answer": answer}
        return ScoredExample(id=row.id, score=float(self.passes(output, answer)), detail=detail)


def _listed(answer: Any) -> Any:
    return [answer] if isinstance(answer, str) else answer


def _pattern_problem(patterns: Sequence[str]) -> str:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            return f"answer {pattern!r} is not a regular expression: {error}"
    return ""


def _number_problem(answers: Sequence[str]) -> str:
    without = next((answer for answer in answers if last_number(answer) is None), None)
    return "" if without is None else f"answer {without!r} has no number"


PROBLEMS = {"regex": _pattern_problem, "last_number": _number_problem}  # of a row's answers, by check
