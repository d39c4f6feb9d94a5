"""Tasks measured while a run trains: their rows are encoded and packed once, and scored again and again by one program.

What must hold: weights have the score here that the evaluation gives them on the same rows, bit by bit where its rows
have the same length; after `prepare` nothing is compiled; training's state is read and never changed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lifecycle.core.progress import Progress
from lifecycle.evals.greedy import greedy_score, logprob_and_rank
from lifecycle.evals.likelihood import Asked, LikelihoodTask
from lifecycle.evals.results import STDERR, EvalResult
from lifecycle.evals.rows import read_rows
from lifecycle.evals.scoring import chunks
from lifecycle.evals.statistics import standard_error
from lifecycle.evals.subject import Encoder
from lifecycle.evals.tasks import TaskRow
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.training.metric_names import TASK_METRIC
from lifecycle.training.scoring import PackedPieces, logprobs, of_continuations, pair_pieces, row_length


@dataclass(frozen=True)
class MeasuredTask:
    """A task, what its chosen rows ask, and `total`: how many rows the evaluation asks."""

    task: LikelihoodTask
    asked: Asked
    total: int

    @cached_property
    def example(self) -> EvalResult:
        """The result of made-up scores: which rows count, and what is measured. Raises `ResultError` if fewer than two
        rows fit the context."""
        return self.asked.result([(0.0, False) if self.task.is_greedy else 0.0] * len(self.asked.pairs))

    @property
    def rows(self) -> str:
        """How many rows are scored, for people."""
        return f"{self.example.n:,} of {self.total:,} rows"

    def metrics(self, scores: Sequence[Any]) -> dict[str, float]:
        """The metrics by their names in the run log, the task's own first; all NaN if a log-likelihood is not
        finite."""
        if not all(math.isfinite(score[0] if self.task.is_greedy else score) for score in scores):
            return dict.fromkeys(_metrics(self.example), math.nan)
        return _metrics(self.asked.result(scores))


class TaskMeasurement:
    """Measures `tasks` on parameters over `mesh`; `num_ids`: of the tokenizer."""

    def __init__(self, tasks: Sequence[MeasuredTask], config: ModelConfig, mesh: Mesh, num_ids: int) -> None:
        self._tasks = tasks
        pieces = [pair_pieces(config, task.asked.pairs) for task in tasks]
        length = row_length((piece for of_task in pieces for piece in of_task), config.max_seq_len, mesh)
        rank = logprob_and_rank(num_ids)
        self._packed = [
            [
                (chunk, PackedPieces(rank if task.task.is_greedy else logprobs, config, of_chunk, length, mesh))
                for chunk in chunks(task.asked.pairs)
                for of_chunk in [[of_task[number] for number in chunk]]
            ]
            for task, of_task in zip(tasks, pieces, strict=True)
        ]

    def prepare(self, params: Params) -> None:
        """Compiles what scores the tasks: a program for all, and one more if a task asks for greedy continuations."""
        by_kind = {task.task.is_greedy: packed for task, packed in zip(self._tasks, self._packed, strict=True)}
        for (_, first), *_ in by_kind.values():
            first.prepare(params)

    def measure(self, params: Params) -> dict[str, float]:
        """Each task's metrics, as `TASK/METRIC`."""
        measured: dict[str, float] = {}
        for task, packed in zip(self._tasks, self._packed, strict=True):
            measured |= task.metrics(list(self._scores(task, packed, params)))
        return measured

    @staticmethod
    def _scores(
        task: MeasuredTask, packed: Sequence[tuple[list[int], PackedPieces]], params: Params
    ) -> Iterator[float | tuple[float, bool]]:
        """The scores in the order of the task's pairs."""
        pairs = task.asked.pairs
        found: dict[int, np.ndarray] = {}
        for chunk, pieces in packed:
            found |= zip(chunk, of_continuations(pieces.measured(params), [pairs[i] for i in chunk]), strict=True)
        for number in range(len(pairs)):
            yield greedy_score(found[number]) if task.task.is_greedy else float(found[number].sum())


def read_measured(
    tasks: Sequence[LikelihoodTask], limit: int | None, inputs: Mapping[str, Path], encoder: Encoder,
    max_seq_len: int, progress: Progress,
) -> list[MeasuredTask]:  # fmt: skip
    """The tasks with `limit` rows of those that the evaluation scores, chosen by the hash of their content. Unusable
    rows and those too long for the context are told. Raises what `read_rows` raises, and `ResultError` if too few
    rows fit."""
    measured = []
    for task in tasks:
        read = read_rows(task, inputs)
        rows = chosen(read.rows, limit)
        found = MeasuredTask(task, task.asked(rows, encoder, max_seq_len), len(read.rows))
        skipped = found.example.skipped
        too_long = [f"{len(skipped):,} are too long for the context; first: {skipped[0]}"] if skipped else []
        for note in (*read.notes, f"measured while training on {found.rows}", *too_long):
            progress.note(f"task {task.name!r}: {note}")
        measured.append(found)
    return measured


def chosen(rows: list[TaskRow], limit: int | None) -> list[TaskRow]:
    """At most `limit` rows, the same in any order of the file; their prompts are those of the evaluation."""
    kept = set(sorted(row.id for row in rows)[:limit])
    return [row for row in rows if row.id in kept]


def _metrics(result: EvalResult) -> dict[str, float]:
    error = standard_error(result.scores, result.weights)
    values = {result.metric: result.mean, f"{result.metric}{STDERR}": error, **result.other}
    return {f"{result.task}{TASK_METRIC}{name}": value for name, value in values.items()}
