"""Kind `generate`: whether greedy output, or the best of a beam search, passes a check against the row's answers. A row
has `prompt` and `answer`: one text, or a list of accepted texts."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from lifecycle.core.config import nearest
from lifecycle.core.progress import Progress
from lifecycle.evals.prompts import PromptTaskConfig
from lifecycle.evals.results import EvalResult, ScoredExample, summarise
from lifecycle.evals.scoring import CHUNK, fitting_rows
from lifecycle.evals.subject import Subject
from lifecycle.evals.tasks import TaskRow, is_text
from lifecycle.evals.verifiers.base import Verdict, Verifier
from lifecycle.evals.verifiers.registry import VERIFIERS
from lifecycle.inference.beams import BeamConfig


def _known_check(name: str) -> str:
    if name not in VERIFIERS:
        raise ValueError(f"no such check{nearest(name, VERIFIERS)}")
    return name


type CheckName = Annotated[str, AfterValidator(_known_check), WithJsonSchema({"enum": list(VERIFIERS)})]


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
        problems = (self._verifier.problem(answer) for answer in wanted)
        return next(filter(None, problems), "") or self.prompt_problem(columns)

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
        verdicts = self.verdicts(outputs, [row.columns["answer"] for row in fitting])
        faults = sum(bool(verdict.fault) for verdict in verdicts)
        if faults:
            progress.note(
                f"{self.name}: {faults} outputs could not be checked and count 0, such as for {_first(verdicts)}"
            )
        examples = [self._example(*parts) for parts in zip(fitting, outputs, verdicts, strict=True)]
        other = {"unchecked": float(faults)} if faults else None
        return summarise(self.name, self.kind, self.check, self.definition, examples, skipped=skipped, other=other)

    def verdicts(self, outputs: Sequence[str], answers: Sequence[str | Sequence[str]]) -> list[Verdict]:
        """Whether each output matches one of its accepted answers: the best of their verdicts."""
        listed = [_listed(answer) for answer in answers]
        pairs = [(output, one) for output, several in zip(outputs, listed, strict=True) for one in several]
        found = iter(self._verifier.verdicts([output for output, _ in pairs], [one for _, one in pairs]))
        return [max((next(found) for _ in several), key=lambda verdict: verdict.score or 0.0) for several in listed]

    @property
    def _verifier(self) -> Verifier:
        return VERIFIERS[self.check]()

    def _example(self, row: TaskRow, output: str, verdict: Verdict) -> ScoredExample:
        prompt, answer = row.columns["prompt"], row.columns["answer"]
        detail = {"prompt": prompt, "output": output, "answer": answer}
        detail |= {"fault": verdict.fault} if verdict.fault else {}
        return ScoredExample(id=row.id, score=verdict.score or 0.0, detail=detail)


def _first(verdicts: Sequence[Verdict]) -> str:
    return next(verdict.fault for verdict in verdicts if verdict.fault)


def _listed(answer: Any) -> Any:
    return [answer] if isinstance(answer, str) else answer
