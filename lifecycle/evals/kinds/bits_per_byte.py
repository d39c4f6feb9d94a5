"""Kind `bits_per_byte`: how well the model predicts documents. A row has `text`; lower is better.

Total nats / ln 2 / total UTF-8 bytes; the EOS is predicted, the BOS is not. A document longer than the context is
scored in windows; every token is predicted exactly once.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lifecycle.evals.likelihood import Asked, LikelihoodTask
from lifecycle.evals.results import EvalResult, ScoredExample, summarise
from lifecycle.evals.scoring import perplexity, take
from lifecycle.evals.subject import Encoder, Pair
from lifecycle.evals.tasks import TaskRow, is_text

OVERLAP = 4  # each later window repeats 1/4 of the context: a third more work, but no token lacks context


class BitsPerByteTask(LikelihoodTask):
    """Bits per byte of documents, and the perplexity per token."""

    columns: ClassVar[tuple[str, ...]] = ("text",)
    metrics: ClassVar[Mapping[str, bool]] = {"bits_per_byte": False, "perplexity": False}

    def problem(self, columns: Mapping[str, Any]) -> str:
        """The error in a row's columns; empty if there is none."""
        return "" if is_text(columns.get("text")) else "expected a column `text` with some text"

    def asked(self, rows: Sequence[TaskRow], encoder: Encoder, max_seq_len: int) -> Asked:
        """The documents' windows."""
        documents = [_document_ids(encoder, row.columns["text"]) for row in rows]
        windows = [document_windows(ids, max_seq_len) for ids in documents]

        def result(logprobs: Sequence[float]) -> EvalResult:
            return self._result(rows, windows, logprobs)

        return Asked([pair for pairs in windows for pair in pairs], result)

    def _result(
        self, rows: Sequence[TaskRow], windows: Sequence[Sequence[Pair]], logprobs: Sequence[float]
    ) -> EvalResult:
        """Bits per byte: the documents' negative log2-likelihood over their UTF-8 bytes."""
        nats = [-math.fsum(part) for part in take(logprobs, [len(pairs) for pairs in windows])]
        sizes = [len(row.columns["text"].encode()) for row in rows]
        examples = [
            ScoredExample(id=row.id, score=loss / math.log(2) / size, weight=size)
            for row, loss, size in zip(rows, nats, sizes, strict=True)
        ]
        tokens = sum(len(continuation) for pairs in windows for _, continuation in pairs)
        other = {"perplexity": perplexity(math.fsum(nats), tokens)}
        return summarise(
            self.name, self.kind, "bits_per_byte", self.definition, examples, higher_is_better=False, other=other
        )


def document_windows(ids: Sequence[int], max_seq_len: int) -> list[Pair]:
    """Splits `[BOS, ..., EOS]` into pairs that fit the context and predict each token after the first exactly once."""
    pairs: list[Pair] = []
    done = 1
    while done < len(ids):
        begin = 0 if done == 1 else done - max(1, max_seq_len // OVERLAP)
        end = min(len(ids), begin + max_seq_len + 1)
        pairs.append((list(ids[begin:done]), list(ids[done:end])))
        done = end
    return pairs


def _document_ids(encoder: Encoder, text: str) -> list[int]:
    return [encoder.bos_id, *encoder.encode(text), encoder.eos_id]
