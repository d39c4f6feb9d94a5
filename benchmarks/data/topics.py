"""Topics against the sources that documents are from, which the clustering does not know.

    lifecycle data topics RUN.yaml --model STAGE --clusters 8 --out topics.parquet
    python -m benchmarks.data.topics RUN/documents-... topics.parquet [MORE.parquet ...]

Prints for the vectors beside each file, clustered into 4, 8 and 16 topics by three seeds, and for tf-idf vectors of the
4,000 most frequent words under the same clustering: purity (the share of documents whose topic is mostly of their
source) and mutual information (over the geometric mean of the entropies; 1 is equal).
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.annotation.clustering import UNIT, cluster, whole
from lifecycle.annotation.perplexity import beginning
from lifecycle.annotation.topic_words import words_in
from lifecycle.annotation.topics import EMBEDDED, key_of
from lifecycle.annotation.vectors import VectorFile, Vectors
from lifecycle.data.documents import read_documents

WORDS, WORD_BYTES = 4000, 1000  # of tf-idf; about what a model with a context of 256 tokens sees
SEEDS = range(3)


def purity(topics: NDArray[np.int64], sources: NDArray[np.int64]) -> float:
    """The share of documents that are of their topic's most frequent source."""
    return sum(int(np.bincount(sources[topics == topic]).max()) for topic in np.unique(topics)) / len(topics)


def mutual_information(topics: NDArray[np.int64], sources: NDArray[np.int64]) -> float:
    """Over the geometric mean of the entropies."""
    joint = np.zeros((topics.max() + 1, sources.max() + 1))
    np.add.at(joint, (topics, sources), 1 / len(topics))
    apart = np.outer(joint.sum(1), joint.sum(0))
    entropies = [-sum(share * np.log(share) for share in joint.sum(axis) if share) for axis in (0, 1)]
    return float((joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum() / np.sqrt(np.prod(entropies)))


def vectors_beside(file: Path, texts: list[str]) -> Vectors:
    """What `lifecycle data topics` has computed of these texts."""
    path = file.with_name(f"{file.name}.vectors")
    with path.open("rb") as lines:
        settings: dict[str, Any] = json.loads(lines.readline())
    with VectorFile(path, settings, settings.pop("dimensions")) as vectors:
        return vectors.read([key_of(beginning(text, settings["most_bytes"])) for text in texts])


def tf_idf(texts: list[str]) -> Vectors:
    """(1 + log of a word's count) times the log of the inverse share of texts that have it."""
    counts = [Counter(words_in(beginning(text, WORD_BYTES))) for text in texts]
    texts_with = Counter(word for own in counts for word in own)
    places = {word: place for place, (word, _) in enumerate(texts_with.most_common(WORDS))}
    found = np.zeros((len(texts), len(places)))
    for row, own in zip(found, counts, strict=True):
        for word in own.keys() & places.keys():
            row[places[word]] = (1 + np.log(own[word])) * np.log(len(texts) / texts_with[word])
    return whole(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9))


def figures(vectors: Vectors, sources: NDArray[np.int64], num: int) -> Iterator[tuple[float, float, float]]:
    """Purity, mutual information and CPU seconds, by seed."""
    for seed in SEEDS:
        start = time.process_time()
        topics = cluster(vectors, num, seed).nearest(vectors)[0]
        yield purity(topics, sources), mutual_information(topics, sources), time.process_time() - start


def show(name: str, vectors: Vectors, sources: NDArray[np.int64]) -> None:
    """Prints the figures of vectors."""
    total = (vectors / UNIT).sum(0)
    cosine = (total @ total - len(vectors)) / len(vectors) / (len(vectors) - 1)
    print(f"{name}: {len(vectors):,} vectors, mean cosine of two {cosine:.2f}")
    for num in (4, 8, 16):
        shown = [f"{p:.3f} {m:.3f} ({s:.1f} s)" for p, m, s in figures(vectors, sources, num)]
        print(f"  {num:2d} topics, purity, information: {', '.join(shown)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    given = parser.parse_args()
    rows = [row for split in EMBEDDED for row in read_documents(given.documents, split, ("source", "text"))]
    texts = [row["text"] for row in rows]
    sources = np.unique([row["source"] for row in rows], return_inverse=True)[1]
    for file in given.files:
        show(str(file), vectors_beside(file, texts), sources)
    show("tf-idf", tf_idf(texts), sources)


if __name__ == "__main__":
    main()
