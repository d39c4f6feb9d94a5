"""Stage `tokenizer`: trains a tokenizer on kept text, or copies an existing one; measures it on held-out
text, by language and by source."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from lifecycle.text.sampling import balanced_chunks
from lifecycle.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

type _Group = tuple[str, str, str]  # corpus, source, language


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Writes the tokenizer; raises `ConfigError` for a model whose vocabulary is too small for it."""
    texts: Iterable[str] = ()
    if config.tokenizer.is_trained:
        progress.note(f"training on up to {config.tokenizer.sample_bytes / 1e6:g} MB of kept text")
        texts = _sample(config.tokenizer, inputs, config.seed)
    stats = train_tokenizer(config.tokenizer, texts, out, config.seed, keys.is_for_published(config))
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


def _sample(settings: TokenizerConfig, inputs: Inputs, seed: int) -> list[str]:
    """Kept text, balanced between sources and languages; all of it is trained on, since it is no larger than asked."""
    sizes = Counter[_Group]()
    for group, row in _grouped(inputs, "text_bytes"):
        sizes[group] += row["text_bytes"]
    texts = ((group, row["text"]) for group, row in _grouped(inputs, "text"))
    return balanced_chunks(texts, sizes, settings.sample_bytes, settings.balance, seed)


def _grouped(inputs: Inputs, column: str) -> Iterator[tuple[_Group, dict[str, Any]]]:
    """The kept documents of all corpora with this column, each with its group."""
    for corpus, documents in by_corpus(DOCUMENTS, inputs).items():
        for row in read_documents(documents.path, "kept", ["source", "language", column]):
            yield (corpus, row["source"], row["language"]), row


def _rows(inputs: Inputs, split: Split, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """These columns of the documents of all corpora."""
    for documents in by_corpus(DOCUMENTS, inputs).values():
        yield from read_documents(documents.path, split, columns)
