"""Scoring shared by the kinds of tasks: rows that fit the context, and log-likelihoods computed in order of length."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.evals.subject import Pair, Subject
from lifecycle.evals.tasks import TaskRow

CHUNK = 256  # pairs or prompts handed to the model at once: enough to sort by length, few enough to show progress


def fitting_rows(
    rows: Sequence[TaskRow], lengths: Mapping[str, int], max_seq_len: int
) -> tuple[list[TaskRow], list[str]]:
    """The rows that fit the context, and a line about each other row; `lengths`: tokens by row id."""
    fitting = [row for row in rows if lengths[row.id] <= max_seq_len]
    skipped = [  # without the folder: results are portable
        f"{Path(row.where).name}: {lengths[row.id]} tokens, the context holds {max_seq_len}"
        for row in rows
        if lengths[row.id] > max_seq_len
    ]
    return fitting, skipped


def loglikelihoods(task: str, pairs: Sequence[Pair], subject: Subject, progress: Progress) -> list[float]:
    """Log-likelihoods in the order of `pairs`, computed in order of length so that a batch has little padding."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    logprobs = [0.0] * len(pairs)
    progress.start(f"evaluate {task}", len(pairs))
    for begin in range(0, len(order), CHUNK):
        chunk = order[begin : begin + CHUNK]
        for i, logprob in zip(chunk, subject.loglikelihoods([pairs[i] for i in chunk]), strict=True):
            logprobs[i] = float(logprob)
        progress.update(begin + len(chunk))
    if any(map(math.isnan, logprobs)):
        raise ConfigError(f"task {task!r}: the model's log-likelihood is not a number: its weights are damaged")
    return logprobs


def take(values: Sequence[float], counts: Sequence[int]) -> Iterator[Sequence[float]]:
    """Cuts `values` into consecutive parts of these lengths."""
    begin = 0
    for count in counts:
        yield values[begin : begin + count]
        begin += count
