"""How probable one of our own models finds each tagged document, as scores that selection joins.

CCNet's idea (Wenzek et al. 2020, arXiv:1911.00359, section 3.4), with a neural model instead of n-grams: text like that
which the model has learned from is probable. What must hold: a document's score depends on its text and on the model
alone, up to the last bits of float sums.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from lifecycle.annotation.journal import Journal, Row
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.data.documents import Stretch, num_documents, tagged_documents
from lifecycle.evals.texts import score_texts
from lifecycle.inference.model import Model

EMPTY = "no text"


@dataclass(frozen=True)
class Measured:
    """Documents with scores, and tagged documents that an earlier run had measured."""

    documents: int
    before: int


def measure_perplexity(
    tagging: Path, out: Path, model: Model, version: str, most_bytes: int, progress: Progress
) -> Measured:
    """Writes a row for each tagged document that has a text: `id`, `content` (the hash of its text), `perplexity` (per
    token, so comparable for this model only), `bits_per_byte`, `tokens`, `bytes`, `model`; of the first `most_bytes`.

    `tagging` is an artifact of that stage. Beside the file `OUT.journal` keeps what is measured, a row group at a time:
    another run measures what is not in it. Raises `ConfigError` for a model whose numbers are not finite, and what
    `Journal` raises.
    """
    stretches, done, before = tagged_documents(tagging), 0, 0
    progress.start("perplexity", num_documents(stretches))
    keys: dict[str, None] = {}
    with Journal(out.with_name(f"{out.name}.journal"), {"model": version, "most_bytes": most_bytes}) as journal:
        for stretch in stretches:
            key = _key(stretch)
            if key in journal:
                before += stretch.num_documents * (key not in keys)
            else:
                rows = list(_rows(stretch, model, version, most_bytes))
                journal.add(key, rows, "" if rows else EMPTY)
            keys[key] = None
            done += stretch.num_documents
            progress.update(done)
        return Measured(journal.write(out, keys), before)


def _key(stretch: Stretch) -> str:
    """What is in a stretch, by the documents' ids."""
    return blake2b("".join(stretch.read(["id"])["id"].to_pylist()).encode(), digest_size=16).hexdigest()


def _rows(stretch: Stretch, model: Model, version: str, most_bytes: int) -> Iterator[Row]:
    documents = stretch.read(["id", "content", "text"]).to_pylist()
    texts = [beginning(row["text"], most_bytes) for row in documents]
    scores = iter(score_texts(model, [text for text in texts if text]))
    for row, text in zip(documents, texts, strict=True):
        if not text:
            continue
        score = next(scores)
        if not math.isfinite(score.nats):
            raise ConfigError(f"document {row['id']}: its likelihood is not finite: the model's weights are damaged")
        yield {
            "id": row["id"], "content": row["content"].hex(),
            "perplexity": min(round(score.perplexity, 4), sys.float_info.max),  # JSON has no infinity
            "bits_per_byte": round(score.bits_per_byte, 6), "tokens": score.num_tokens, "bytes": score.num_bytes,
            "model": version,
        }  # fmt: skip


def beginning(text: str, most_bytes: int) -> str:
    """The first characters of a text that have at most `most_bytes` bytes in UTF-8."""
    return text.encode()[:most_bytes].decode(errors="ignore")
