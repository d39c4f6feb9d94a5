"""An evaluation: scores every task's rows with one model and writes the results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifecycle.core.progress import Progress
from lifecycle.evals.config import EvalConfig
from lifecycle.evals.results import EvalResult, write_results
from lifecycle.evals.rows import TaskRows, read_rows
from lifecycle.evals.subject import Subject
from lifecycle.evals.tasks import TaskConfig


def evaluate(
    config: EvalConfig, inputs: Mapping[str, Path], subject: Subject, out: Path, progress: Progress
) -> dict[str, Any]:
    """Runs all tasks and writes their results into `out`; returns the summaries by task. See `read_rows` for errors."""
    found = [(task, read_rows(task, inputs)) for task in config.tasks]  # read first: errors in rows come early
    for task, rows in found:
        for note in rows.notes:
            progress.note(f"task {task.name!r}: {note}")
    return write_results([_scored(task, rows, subject, progress) for task, rows in found], out)


def _scored(task: TaskConfig, rows: TaskRows, subject: Subject, progress: Progress) -> EvalResult:
    result = task.score(rows.rows, subject, progress)
    return result.model_copy(update={"skipped": [*rows.skipped, *result.skipped], "doubtful": rows.doubtful})
