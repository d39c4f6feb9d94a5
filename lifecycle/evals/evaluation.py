"""An evaluation: scores every task's rows with one model and writes the results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifecycle.core.progress import Progress
from lifecycle.evals.config import EvalConfig
from lifecycle.evals.results import write_results
from lifecycle.evals.rows import read_rows
from lifecycle.evals.subject import Subject


def evaluate(
    config: EvalConfig, inputs: Mapping[str, Path], subject: Subject, out: Path, progress: Progress
) -> dict[str, Any]:
    """Runs all tasks and writes their results into `out`; returns the summaries by task. See `read_rows` for errors."""
    tasks = [(task, read_rows(task, inputs)) for task in config.tasks]  # read first, so that errors in rows come early
    return write_results([task.score(rows, subject, progress) for task, rows in tasks], out)
