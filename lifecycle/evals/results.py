"""Results of an evaluation: a score per example, their weighted mean and its confidence interval.

On disk: `results.json` with the summaries and `<task>.jsonl` with one example per line. Two results are comparable if
their `definition` is the same (everything in the task that affects a score); their examples can be paired if their
ids match, since an id is a hash of the row's content.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lifecycle.core.distributed import is_writer
from lifecycle.core.files import write_text

RESULTS = "results.json"
# In a run log, where a task's metrics are TASK/METRIC: the score of random guessing, and the standard error of the
# metric before it, which is the task's own.
CHANCE, STDERR = "chance", "_stderr"
LEVEL = 0.95  # confidence level of every interval shown, as is usual in the field


class ResultError(ValueError):
    """Scores that cannot be summarised, or results that cannot be read."""


class ScoredExample(BaseModel):
    """One scored row; `detail` is for people: the picked choice, the generated text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    score: float
    weight: float = 1.0
    detail: dict[str, Any] = {}


class EvalResult(BaseModel):
    """One task's result: the weighted mean of the examples' scores, and the bounds of its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    kind: str
    metric: str
    higher_is_better: bool
    definition: str
    n: int
    mean: float
    low: float
    high: float
    interval: str  # the method behind low and high
    skipped: list[str] = []  # rows that were not scored, with the reason: a fault, or too long for the context
    doubtful: list[str] = []  # scored rows that contradict another one
    other: dict[str, float] = {}  # further metrics of the same examples
    examples: list[ScoredExample] = []

    @property
    def scores(self) -> list[float]:
        """The examples' scores, in order."""
        return [example.score for example in self.examples]

    @property
    def weights(self) -> list[float]:
        """The examples' weights, in order."""
        return [example.weight for example in self.examples]

    def __str__(self) -> str:
        return f"{self.task}: {self.metric} {self.mean:.4f} [{self.low:.4f}, {self.high:.4f}], n={self.n}"


def summarise(
    task: str,
    kind: str,
    metric: str,
    definition: str,
    examples: Sequence[ScoredExample],
    higher_is_better: bool = True,
    skipped: Sequence[str] = (),
    other: dict[str, float] | None = None,
) -> EvalResult:
    """The result of these examples; raises `ResultError` for fewer than two examples, duplicate ids or
    non-finite scores."""
    from lifecycle.evals.statistics import estimate  # scipy.stats takes a second to import: only if it is used

    if len(examples) < 2:
        reason = f"; skipped: {skipped[0]}" if skipped else ""
        raise ResultError(f"task {task!r}: {len(examples)} scored example(s), at least two are needed{reason}")
    broken = [example.id for example in examples if not math.isfinite(example.score)]
    if broken:
        raise ResultError(
            f"task {task!r}: {len(broken)} example(s) have a score that is not finite, first {broken[0]}: "
            "the model is damaged"
        )
    if len({example.id for example in examples}) < len(examples):
        raise ResultError(f"task {task!r}: two examples have the same id; remove duplicate rows")
    interval = estimate([e.score for e in examples], [e.weight for e in examples], LEVEL)
    return EvalResult(
        task=task, kind=kind, metric=metric, higher_is_better=higher_is_better, definition=definition, n=len(examples),
        mean=interval.mean, low=interval.low, high=interval.high, interval=interval.method, skipped=list(skipped),
        other=other or {}, examples=list(examples),
    )  # fmt: skip


def write_results(results: Sequence[EvalResult], out: Path) -> dict[str, Any]:
    """Writes results into a folder, in the writing process; returns the summaries by task, for the manifest."""
    summaries = {result.task: result.model_dump(exclude={"examples"}) for result in results}
    if not is_writer():
        return summaries
    for result in results:
        lines = (json.dumps(example.model_dump(), ensure_ascii=False) + "\n" for example in result.examples)
        write_text(out / f"{result.task}.jsonl", "".join(lines))
    write_text(out / RESULTS, json.dumps(summaries, indent=1, ensure_ascii=False))
    return summaries


def read_results(folder: Path) -> list[EvalResult]:
    """Reads the files of `write_results`; raises `ResultError` if they are missing or damaged."""
    path = folder / RESULTS
    if not path.is_file():
        raise ResultError(f"{folder}: no evaluation here (no {RESULTS}); run the evaluate stage")
    try:
        summaries = json.loads(path.read_text(encoding="utf-8"))
        return [
            EvalResult(**summary, examples=_read_examples(folder / f"{task}.jsonl"))
            for task, summary in summaries.items()
        ]
    except (json.JSONDecodeError, ValidationError) as error:
        raise ResultError(f"{folder}: damaged evaluation: {error}; delete the folder and evaluate again") from None


def _read_examples(path: Path) -> list[ScoredExample]:
    if not path.is_file():
        raise ResultError(f"{path}: missing; delete the folder and evaluate again")
    with open(path, encoding="utf-8") as file:
        return [ScoredExample.model_validate_json(line) for line in file]
