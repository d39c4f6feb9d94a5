"""Scoring shared by the kinds of tasks: rows that fit the context, and log-likelihoods computed in order of length."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.evals.subject import Pair, Subject
from lifecycle.evals.tasks import TaskRow, portable

CHUNK = 256  # pairs or prompts handed to the model at once: enough to sort by length, few enough to show progress


def fitting_rows(
    rows: Sequence[TaskRow], lengths: Mapping[str, int], max_seq_len: int
) -> tuple[list[TaskRow], list[str]]:
    """The rows that fit the context, and a line about each other row; `lengths`: tokens by row id."""
    fitting = [row for row in rows if lengths[row.id] <= max_seq_len]
    skipped = [
        f"{portable(row.where)}: {lengths[row.id]} tokens, the context holds {max_seq_len}"
        for row in rows
        if lengths[row.id] > max_seq_len
    ]
    return fitting, skipped


def loglikelihoods(task: str, pairs: Sequence[Pair], subject: Subject, progress: Progress) -> list[float]:
    """Log-likelihoods in the order of `pairs`; raises `ConfigError` for one that is not a number."""
    logprobs = list(map(float, in_order_of_length(task, pairs, subject.loglikelihoods, progress)))
    require_numbers(task, logprobs)
    return logprobs


def in_order_of_length[R](
    task: str, pairs: Sequence[Pair], score: Callable[[Sequence[Pair]], Sequence[R]], progress: Progress
) -> list[R]:
    """Scores in the order of `pairs`, computed in order of length so that a batch has little padding."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    scores: dict[int, R] = {}
    progress.start(f"evaluate {task}", len(pairs))
    for begin in range(0, len(order), CHUNK):
        chunk = order[begin : begin + CHUNK]
        scores |= zip(chunk, score([pairs[i] for i in chunk]), strict=True)
        progress.update(begin + len(chunk))
    return [scores[i] for i in range(len(pairs))]


def require_numbers(task: str, logprobs: Sequence[float]) -> None:
    """Raises `ConfigError` for a log-likelihood that is not a number."""
    if any(map(math.isnan, logprobs)):
        raise ConfigError(f"task {task!r}: the model's log-likelihood is not a number: its weights are damaged")


def take(values: Sequence[float], counts: Sequence[int]) -> Iterator[Sequence[float]]:
    """Cuts `values` into consecutive parts of these lengths."""
    begin = 0
    for count in counts:
        yield values[begin : begin + count]
        begin += count
