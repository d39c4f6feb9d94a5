"""Scoring shared by the kinds of tasks: rows that fit the context, and scores computed in order of length."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from lifecycle.core.progress import Progress
from lifecycle.evals.subject import Pair
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


def in_order_of_length[R](
    task: str, pairs: Sequence[Pair], score: Callable[[Sequence[Pair]], Sequence[R]], progress: Progress
) -> list[R]:
    """Scores in the order of `pairs`, computed in order of length so that a batch has little padding."""
    scores: dict[int, R] = {}
    progress.start(f"evaluate {task}", len(pairs))
    for chunk in chunks(pairs):
        scores |= zip(chunk, score([pairs[i] for i in chunk]), strict=True)
        progress.update(len(scores))
    return [scores[i] for i in range(len(pairs))]


def chunks(pairs: Sequence[Pair]) -> list[list[int]]:
    """The numbers of the pairs that are scored together, in order of length."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    return [order[begin : begin + CHUNK] for begin in range(0, len(order), CHUNK)]


def take(values: Sequence[float], counts: Sequence[int]) -> Iterator[Sequence[float]]:
    """Cuts `values` into consecutive parts of these lengths."""
    begin = 0
    for count in counts:
        yield values[begin : begin + count]
        begin += count


def perplexity(nats: float, num_tokens: int) -> float:
    """Per token, so comparable for one tokenizer only. Infinite above 709 nats a token, where it is no float64."""
    try:
        return math.exp(nats / num_tokens)
    except OverflowError:
        return math.inf
