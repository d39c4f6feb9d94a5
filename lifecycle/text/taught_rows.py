"""Rows of tokens with what a teacher says of those that are learned.

| column | value |
|---|---|
| `input_ids` | the tokens' ids |
| `labels` | for each token its id, or -100 where it is not learned, as in transformers |
| `teacher_ids` | for each token the ids that might have stood there; of one that is not learned none, `[]` |
| `teacher_logprobs` | their log-probabilities in nats, at the stage's temperature |

What must hold: what a stage learns is what the row says, to the last number; a row that cannot be right is refused with
the place of the first token that is wrong.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from lifecycle.text.row_files import RowData, RowError

IGNORED = -100
LARGEST_SUM = 1 + 1e-3  # of probabilities that were rounded, as to float16 or to four digits


class Told(NamedTuple):
    """What a teacher says of tokens, `[tokens, K]`: ids in int32, -1 where there are no more, and their
    log-probabilities in float32."""

    ids: np.ndarray
    logprobs: np.ndarray


def told_of(row: RowData, vocab_size: int) -> tuple[list[bool], Told]:
    """For each token of a row whether it is learned, and what is said of those that are; raises `RowError`."""
    ids = row["input_ids"]
    if not _are_ids(ids, vocab_size) or not ids:
        raise RowError(f"input_ids must be a list of ids below {vocab_size}")
    for name in ("labels", "teacher_ids", "teacher_logprobs"):
        if not isinstance(row[name], list) or len(row[name]) != len(ids):
            raise RowError(f"{name} must be a list with one entry for each of the {len(ids)} input_ids")
    for place, (own, label) in enumerate(zip(ids, row["labels"], strict=True)):
        if label not in (own, IGNORED) or isinstance(label, bool):
            raise RowError(f"labels[{place}] is {label!r}; give the token's own id, {own}, or {IGNORED}")
    if row["labels"][0] != IGNORED:
        raise RowError(f"labels[0] is {ids[0]}, and nothing predicts the first token; give {IGNORED}")
    mask = [label != IGNORED for label in row["labels"]]
    said = [
        _said(place, row["teacher_ids"][place], row["teacher_logprobs"][place], is_learned, vocab_size)
        for place, is_learned in enumerate(mask)
    ]
    learned = [each for each, is_learned in zip(said, mask, strict=True) if is_learned]
    num = max((len(ids) for ids, _ in learned), default=0)
    told = Told(np.full((len(learned), num), -1, np.int32), np.zeros((len(learned), num), np.float32))
    for place, each in enumerate(learned):
        for column, values in zip(told, each, strict=True):
            column[place, : len(values)] = values
    return mask, told


def _said(place: int, ids: Any, logprobs: Any, is_learned: bool, vocab_size: int) -> tuple[list[int], list[float]]:
    """What the teacher says of a token, checked."""
    at = f"teacher_ids[{place}]"
    if not is_learned:
        if ids or logprobs:
            raise RowError(f"{at}: the token has no label, so nobody reads it; give [], or the token a label")
        return [], []
    if not _are_ids(ids, vocab_size) or not ids:
        raise RowError(f"{at} must be a list of ids below {vocab_size}, of one at least")
    if len(set(ids)) < len(ids):
        raise RowError(f"{at}: an id is there twice; give each once")
    if not isinstance(logprobs, list) or len(logprobs) != len(ids):
        raise RowError(f"teacher_logprobs[{place}] must be a list with one number for each of {at}")
    for value in logprobs:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value > 0:
            raise RowError(f"teacher_logprobs[{place}] has {value!r}; give finite numbers of at most 0")
    if (total := math.fsum(map(math.exp, logprobs))) > LARGEST_SUM:
        raise RowError(
            f"teacher_logprobs[{place}]: the probabilities add up to {total:.4g}; they are log-probabilities"
        )
    return ids, logprobs


def _are_ids(values: Any, vocab_size: int) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size for value in values
    )
