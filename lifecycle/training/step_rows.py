"""Rows of answers in steps, packed whole, with a label at each step's last token."""

from collections.abc import Callable, Sequence

import numpy as np

from lifecycle.core.config import digest
from lifecycle.parallel.columns import declare
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.packing import ExampleRows, Row

STEP_LABELS = "step_labels"  # a column: at the last token of a step that is right 1, of a wrong one -1, elsewhere 0
declare("token", STEP_LABELS)


class StepRows(ExampleRows):
    """Answers whose masks mark the ends of steps and whose labels say which are right; `last_step_only`: of each answer
    the last one is learned alone. `name`: as in `ExampleRows`."""

    def __init__(
        self,
        answers: Sequence[EncodedRow],
        seq_len: int,
        seed: int,
        name: Callable[[int], str] = str,
        last_step_only: bool = False,
    ) -> None:
        super().__init__(answers, seq_len, seed, name)
        self._signs = [_signs(answer, last_step_only) for answer in answers]
        self.fingerprint = digest(["steps", self.fingerprint, [signs.tolist() for signs in self._signs]])

    def row(self, index: int) -> Row:
        """The row with this index, counted over all epochs."""
        row = super().row(index)
        signs = np.concatenate([self._signs[unit] for unit in self._packed.units(index)])
        labels = np.zeros(len(row["tokens"]), np.float32)
        labels[: len(signs)] = signs
        return row | {STEP_LABELS: labels}


def _signs(answer: EncodedRow, last_step_only: bool) -> np.ndarray:
    assert answer.labels is not None, "rows of steps have labels"
    signs = np.where(answer.loss_mask, 2 * np.asarray(answer.labels, np.float32) - 1, 0).astype(np.float32)
    if last_step_only:
        signs[: np.flatnonzero(signs)[-1]] = 0
    return signs
