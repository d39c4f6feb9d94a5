"""Fine-tuning rows put one behind the other and cut into rows of a fixed length: TRL's `packing_strategy: wrapped`.

All rows are full, and an example of any length is learned, at the price of cuts: what is cut goes on in another row as
a segment of its own, which begins at position 0 and sees nothing of what came before. What must hold: each target of an
example is in an epoch exactly once, the first behind a cut too: it is the last one of the row before. Rows have TRL's
tokens; TRL learns no token behind a cut, and lets the examples of a row see each other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.packing import MaskedIds, Row, hash_examples


class Examples:
    """Examples as documents. `name`: as in `ExampleRows`."""

    def __init__(self, examples: Sequence[MaskedIds], name: Callable[[int], str] = str) -> None:
        self._examples, self._name = examples, name
        self.lengths = np.array([len(example.ids) for example in examples], np.int64)
        self.index: dict[str, Any] = {"examples": hash_examples(examples)}

    def __getitem__(self, document: int) -> np.ndarray:
        return np.asarray(self._examples[document].ids, np.int32)

    def learned(self, document: int) -> np.ndarray:
        """For each of an example's tokens 1 if it is a target, else 0."""
        return np.asarray(self._examples[document].loss_mask, np.float32)

    def name(self, document: int) -> str:
        """What people know an example by."""
        return self._name(document)


class WrappedRows(DocumentRows):
    """Rows of `seq_len` tokens, the last one of an epoch shorter; a position has loss if its target is in an example's
    mask."""

    def __init__(
        self, examples: Sequence[MaskedIds], seq_len: int, seed: int, name: Callable[[int], str] = str
    ) -> None:
        self._examples = Examples(examples, name)
        super().__init__(self._examples, seq_len, seed)

    def row(self, index: int) -> Row:
        """The row with this index, counted over all epochs."""
        row, at = super().row(index), 0
        for document, begin, end in self._pieces(index):
            of_targets = self._examples.learned(document)[begin + 1 : end + 1]
            row["loss_mask"][at : at + len(of_targets)] *= of_targets
            at += end - begin
        return row


def num_wrapped_rows(lengths: Sequence[int], seq_len: int) -> int:
    """How many rows examples of these lengths fill: the last token is a target only."""
    return -(-(sum(lengths) - 1) // seq_len)
