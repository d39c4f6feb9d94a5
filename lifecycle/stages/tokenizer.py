"""Stage `tokenizer`: trains a tokenizer on kept text, or copies an existing one; measures it on held-out
text, by language and by source."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lifecycle.core.artifact import READ_FROM
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.core.web_address import shown
from lifecycle.data.documents import Split, read_documents
from lifecycle.stages import keys
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import DOCUMENTS, by_corpus
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.text.fertility import ALL, COLUMNS, as_rows, sizes
from lifecycle.text.tokenizer import load_tokenizer, train_tokenizer


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Writes the tokenizer; raises `ConfigError` for a model whose vocabulary is too small for it."""
    if config.tokenizer.is_trained:
        progress.note(f"training on up to {config.tokenizer.sample_bytes / 1e6:g} MB of kept text")
    stats = train_tokenizer(config.tokenizer, _texts(inputs), out, config.seed, keys.is_for_published(config))
    if config.tokenizer.path is not None:
        stats[READ_FROM] = [shown(config.tokenizer.path)]
    for name, model in config.models.items():
        try:
            model.with_vocab(stats["vocab_size"])
        except ConfigError as error:
            raise error if len(config.models) == 1 else ConfigError(f"model {name}: {error}") from None
    if by_corpus(DOCUMENTS, inputs):
        found = sizes(load_tokenizer(out), _rows(inputs, "heldout", COLUMNS))
        stats |= {"heldout_bytes_per_token": found[ALL].bytes_per_token, "fertility": as_rows(found)}
    return Outcome(stats)


def _texts(inputs: Inputs) -> Iterator[str]:
    """The kept documents' texts; empty for a run without documents, which uses an existing tokenizer."""
    yield from (row["text"] for row in _rows(inputs, "kept", ["text"]))


def _rows(inputs: Inputs, split: Split, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """These columns of the documents of all corpora."""
    for documents in by_corpus(DOCUMENTS, inputs).values():
        yield from read_documents(documents.path, split, columns)
