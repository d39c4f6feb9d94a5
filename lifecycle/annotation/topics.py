"""Topics of a corpus: clusters of what one of our own models makes of its documents.

Each document's beginning becomes a vector, the mean of the model's hidden states; a sample of the kept documents is
clustered, and each document, held out ones too, has the topic whose centre is nearest. Corpora are clustered like this
in SemDeDup (Abbas et al. 2023, section 3) and D4 (Tirumala et al. 2023). What must hold: a document's topic depends on
the kept documents, the model, the seed and its own text alone; memory holds the vectors of the sample, and of the
documents a part.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.annotation.clustering import Clusters, cluster, whole
from lifecycle.annotation.perplexity import beginning
from lifecycle.annotation.sample import drawn_documents, drawn_numbers
from lifecycle.annotation.topic_words import distinctive
from lifecycle.annotation.vectors import KEY_BYTES, VectorFile
from lifecycle.core.config import ConfigError
from lifecycle.core.files import temporary
from lifecycle.core.progress import Progress
from lifecycle.data.documents import Split
from lifecycle.data.inspecting.samples import Smallest, draw_keys
from lifecycle.data.inspecting.selected import id_numbers, num_documents, read_parts
from lifecycle.inference.generate import Embedder
from lifecycle.inference.generation import EngineError
from lifecycle.inference.model import Model

SAMPLE = 1 << 15  # documents that are clustered
WORD_TEXTS, WORD_CHARS, WORDS = 64, 4000, 8  # of a topic: texts that its words are from, of each so much; its words
PIECE = 256  # documents embedded at a time: what a kill costs
ROWS = 1 << 16  # of a row group
EMBEDDED: tuple[Split, ...] = ("kept", "heldout")

_SCHEMA = pa.schema([("id", pa.string()), ("topic", pa.int32()), ("similarity", pa.float64()), ("model", pa.string())])


@dataclass(frozen=True)
class TopicSettings:
    """What topics depend on beside documents and model: their number, how many bytes of each text count, the seed."""

    clusters: int
    most_bytes: int
    seed: int


@dataclass(frozen=True)
class Topic:
    """A topic as people see it; `similarity`: the mean cosine of its documents with its centre."""

    topic: int
    documents: int
    bytes: int
    similarity: float
    sources: dict[str, int]  # documents of each, the most first
    words: list[str]


@dataclass(frozen=True)
class Found:
    """The topics, the documents whose vectors an earlier run had computed, and those without a text, which have no
    topic."""

    topics: list[Topic]
    before: int
    empty: int


def find_topics(
    documents: Path, out: Path, model: Model, version: str, settings: TopicSettings, progress: Progress
) -> Found:
    """Writes a Parquet file with a row for each kept and held-out document that has a text: `id`, `topic` (from 0, the
    largest in the sample first), `similarity` (its cosine with the centre, both seen from the mean), `model`.

    `documents` is an artifact of that stage. Beside the file `OUT.vectors` keeps the vectors: another run, for another
    number of topics too, computes only those that are not in it. A text longer than the model's context is cut to it.
    Raises `ConfigError` for fewer documents than topics and a model whose numbers are not finite, and what `VectorFile`
    raises.
    """
    made_by = {"model": version, "context": model.config.max_seq_len, "most_bytes": settings.most_bytes}
    with VectorFile(out.with_name(f"{out.name}.vectors"), made_by, model.config.d_model) as vectors:
        before = _embed(documents, vectors, model, settings.most_bytes, progress)
        progress.start("clusters")
        clusters = _clusters(documents, vectors, settings)
        tally = _Tally.of(settings.clusters)
        _write(out, _assigned(documents, vectors, clusters, settings, tally, progress), version)
    return Found(tally.topics(), before, tally.empty)


def _embed(documents: Path, vectors: VectorFile, model: Model, most_bytes: int, progress: Progress) -> int:
    """Computes the vectors that are not there; returns the number of documents whose vectors were."""
    progress.start("vectors", num_documents(documents, EMBEDDED))
    embed, before, done, waiting = _embedding(model, most_bytes), 0, 0, dict[bytes, str]()
    for part in read_parts(documents, ("text",), EMBEDDED):
        texts = _beginnings(part.rows, most_bytes)
        held = [text for text in texts if text]
        keys = [key_of(text) for text in held]
        lacking = vectors.lacks(keys)
        before += len(keys) - int(lacking.sum())
        waiting |= {key: text for key, text, is_new in zip(keys, held, lacking, strict=True) if is_new}
        done += len(texts)
        if len(waiting) >= PIECE:
            vectors.add([*waiting], whole(embed([*waiting.values()])))
            waiting.clear()
            progress.update(done)
    if waiting:
        vectors.add([*waiting], whole(embed([*waiting.values()])))
    progress.update(done)
    return before


def _embedding(model: Model, most_bytes: int) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """From texts to vectors `[N, D]`."""
    tokenizer, context = model.tokenizer, min(model.config.max_seq_len, most_bytes + 1)  # of BOS and bytes, at most
    embedder = Embedder(model, max_seq_len=context)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        ids = [tokenizer.begin(own)[:context] for own in tokenizer.encode_batch(list(texts))]
        try:
            return embedder(ids)
        except EngineError as error:
            raise ConfigError(f"a document cannot be embedded: {error}") from None

    return embed


def _beginnings(rows: pa.RecordBatch, most_bytes: int) -> list[str]:
    return [beginning(text, most_bytes) for text in rows["text"].to_pylist()]


def key_of(text: str) -> bytes:
    """What the vector of a text is kept under."""
    return blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def _clusters(documents: Path, vectors: VectorFile, settings: TopicSettings) -> Clusters:
    """Those of the sample."""
    numbers = drawn_numbers(documents, SAMPLE, settings.seed)
    texts = (beginning(row["text"], settings.most_bytes) for row in drawn_documents(documents, numbers))
    keys = [key_of(text) for text in texts if text]
    if len(keys) < settings.clusters:
        raise ConfigError(f"{settings.clusters} topics of {len(keys):,} kept documents with a text: ask for fewer")
    return cluster(vectors.read(keys), settings.clusters, settings.seed)


@dataclass
class _Tally:
    """What is counted of each topic."""

    documents: NDArray[np.int64]
    bytes: NDArray[np.int64]
    similarity: NDArray[np.float64]
    sources: list[Counter[str]]
    texts: Smallest[str] = field(default_factory=lambda: Smallest[str](WORD_TEXTS))
    empty: int = 0

    @classmethod
    def of(cls, number: int) -> "_Tally":
        """With nothing in it."""
        return cls(np.zeros(number, int), np.zeros(number, int), np.zeros(number), [Counter() for _ in range(number)])

    def add(self, rows: pa.RecordBatch, topics: NDArray[np.int64], similarity: NDArray[np.float64], seed: int) -> None:
        """Takes documents in, by their topics."""
        texts, keys = rows["text"].to_pylist(), draw_keys(id_numbers(rows), seed)
        np.add.at(self.documents, topics, 1)
        np.add.at(self.bytes, topics, [len(text.encode()) for text in texts])
        np.add.at(self.similarity, topics, similarity)
        for topic, source in zip(topics.tolist(), rows["source"].to_pylist(), strict=True):
            self.sources[topic][source] += 1
        for topic in np.unique(topics).tolist():
            own = np.flatnonzero(topics == topic)
            self.texts.offer(topic, keys[own], lambda at, own=own: texts[own[at]][:WORD_CHARS])

    def topics(self) -> list[Topic]:
        """All topics, with their words."""
        words = distinctive([self.texts.of(topic) for topic in range(len(self.documents))], WORDS)
        means = self.similarity / np.maximum(self.documents, 1)
        return [
            Topic(
                topic, int(self.documents[topic]), int(self.bytes[topic]), round(float(means[topic]), 4),
                dict(sorted(self.sources[topic].items(), key=lambda of: (-of[1], of[0]))), words[topic],
            )
            for topic in range(len(words))
        ]  # fmt: skip


def _assigned(
    documents: Path, vectors: VectorFile, clusters: Clusters, settings: TopicSettings, tally: _Tally, progress: Progress
) -> Iterator[dict[str, Any]]:
    """The columns `id`, `topic` and `similarity` of some documents at a time."""
    progress.start("topics", num_documents(documents, EMBEDDED))
    done = 0
    for part in read_parts(documents, ("id", "source", "text"), EMBEDDED):
        texts = _beginnings(part.rows, settings.most_bytes)
        has_text = np.array([bool(text) for text in texts])
        done, tally.empty = done + len(texts), tally.empty + int((~has_text).sum())
        rows = part.rows.filter(pa.array(has_text))
        if rows.num_rows:
            topics, similarity = clusters.nearest(vectors.read([key_of(text) for text in texts if text]))
            tally.add(rows, topics, similarity, settings.seed)
            yield {"id": rows["id"], "topic": topics, "similarity": np.round(similarity, 6)}
        progress.update(done)


def _write(out: Path, parts: Iterator[dict[str, Any]], version: str) -> None:
    """Writes the rows, whole or not at all, in row groups of one size."""
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetWriter(unfinished := temporary(out), _SCHEMA, compression="zstd") as file:
        for part in parts:
            model = [version] * len(part["topic"])
            waiting.append(pa.record_batch({**part, "model": model}).cast(_SCHEMA))
            while sum(rows.num_rows for rows in waiting) >= ROWS:
                table = pa.Table.from_batches(waiting, _SCHEMA)
                file.write_table(table.slice(0, ROWS), row_group_size=ROWS)
                waiting = table.slice(ROWS).to_batches()
        file.write_table(pa.Table.from_batches(waiting, _SCHEMA), row_group_size=ROWS)
    unfinished.replace(out)
