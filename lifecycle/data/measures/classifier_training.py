"""Training of a classifier from good and bad examples, or from graded documents.

A text's hash and the seed decide whether it trains, calibrates or tests, so a text that is there twice is on one side
only; a text that is there as good and as bad is left out. What must hold: same documents and seed, same file, in
whatever order they come.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from lifecycle.core.config import ConfigError, validate
from lifecycle.data.config import DataConfig
from lifecycle.data.documents import read_batches
from lifecycle.data.measures.classifier import MOST_BYTES, Classifier, weigh, write_classifier
from lifecycle.data.measures.normalise import Normalise
from lifecycle.data.measures.scores import read_scores
from lifecycle.data.measures.steps import run_steps
from lifecycle.data.ngrams import folded_characters
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.raw import RawDocument, raw_batch
from lifecycle.data.reading.sources import list_files

EPOCHS = 5  # twice as many: the same F1 of spam
RATE = 1.0  # twice or a third of it: smaller by 0.002 to 0.004
TEST, CALIBRATE = 0.1, 0.2  # the shares of hashes below which a text tests, or calibrates
LEAST = 20  # documents of each kind in each of the three parts
BATCH = 256
THRESHOLD = 0.5


type Example = tuple[str | None, int]  # a text and its label, 1 for bad; None for what could not be read


def train_classifier(
    good: Sequence[Path], bad: Sequence[Path], out: Path, seed: int = 0, format: str | None = None
) -> dict[str, Any]:
    """Trains a classifier that tells `bad` from `good` documents, writes it to `out`, and returns its manifest: numbers
    of documents, and on those held out AUC, F1, precision and recall at `THRESHOLD`, and the error of calibration.

    `good` and `bad` are files and folders as in `data.sources`, of a `format` if their names do not tell it. Raises
    `ConfigError` if there are too few documents.
    """
    kinds = ((paths, label) for label, paths in enumerate((good, bad)))
    return _trained(((text, label) for paths, label in kinds for text in _texts(paths, format)), out, seed)


def train_on_scores(scores: Path, documents: Path, threshold: float, out: Path, seed: int = 0) -> dict[str, Any]:
    """The same from documents with scores (`scores.py`): those below the threshold are the bad ones. `documents` is an
    artifact of stage `documents`; the manifest counts the scores of which it keeps no document, too.

    Raises `ConfigError` also for a file without scores.
    """
    table = read_scores(scores, "score")
    num_found = 0

    def examples() -> Iterator[Example]:
        nonlocal num_found
        for batch in read_batches(documents, "kept", ("id", "text")):
            values = table.of(batch["id"])
            num_found += (chosen := np.flatnonzero(~np.isnan(values))).size
            texts = batch["text"].take(pa.array(chosen)).to_pylist()
            yield from zip(texts, (values[chosen] < threshold).astype(int).tolist(), strict=True)

    found = _trained(examples(), out, seed, {"threshold": float(threshold)})
    return found | {"without_document": len(table.values) - num_found}


def _trained(
    examples: Iterable[Example], out: Path, seed: int, also: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    known, counts = _different(examples)
    hashes = sorted(known)
    texts, labels = [known[name][0] for name in hashes], np.array([known[name][1] for name in hashes], np.float64)
    part = np.array([_drawn(name, seed) for name in hashes])
    is_test, is_calibrating = part < TEST, (part >= TEST) & (part < CALIBRATE)
    is_training = ~(is_test | is_calibrating)
    for chosen in (is_test, is_calibrating, is_training):
        num_bad = int(labels[chosen].sum())
        if min(num_bad, int(chosen.sum()) - num_bad) < LEAST:
            num_bad = int(labels.sum())
            found = f"{len(labels) - num_bad} good and {num_bad} bad documents that differ"
            raise ConfigError(f"{found} are too few: give {20 * LEAST} of each")
    weights, bias = _learnt(
        [text for text, own in zip(texts, is_training, strict=True) if own], labels[is_training], seed
    )
    sums = weigh(weights, bias, pa.array(texts))
    scale = calibrated(sums[is_calibrating], labels[is_calibrating])
    scores = 1 / (1 + np.exp(-(scale[0] * sums[is_test] + scale[1])))
    manifest = {**counts, "seed": seed, **(also or {}), "heldout": quality(scores, labels[is_test])}
    write_classifier(out, Classifier(weights, bias, scale, manifest))
    return manifest


def _drawn(name: bytes, seed: int) -> float:
    """A number from 0 to 1, drawn by a text's hash and the seed."""
    return int.from_bytes(blake2b(name + str(seed).encode(), digest_size=8).digest()) / 2**64


def _different(examples: Iterable[Example]) -> tuple[dict[bytes, tuple[str, int]], dict[str, int]]:
    """The different texts and their label, by a hash, and what was read."""
    found: dict[bytes, tuple[str, int]] = {}
    doubtful: set[bytes] = set()
    counts = {"good": 0, "bad": 0, "skipped": 0, "repeated": 0}
    for text, label in examples:
        if text is None:
            counts["skipped"] += 1
            continue
        counts[("good", "bad")[label]] += 1
        name = blake2b(text.encode(), digest_size=16).digest()
        counts["repeated"] += name in found
        if found.setdefault(name, (text, label))[1] != label:
            doubtful.add(name)
    return {name: example for name, example in found.items() if name not in doubtful}, counts | {"both": len(doubtful)}


def _texts(paths: Sequence[Path], format: str | None) -> Iterator[str | None]:
    """The normalised texts of all documents; None for what could not be read."""
    sources = [{"name": str(number), "path": str(path), "format": format} for number, path in enumerate(paths)]
    config = validate(DataConfig, {"sources": sources})
    waiting: list[RawDocument] = []
    for file in list_files(config):
        for item in extract_file(file, config.sources[file.source], config.max_document_bytes):
            if not isinstance(item, RawDocument):
                yield None
                continue
            waiting.append(item)
            if len(waiting) == BATCH:
                yield from _normalised(waiting)
                waiting = []
    yield from _normalised(waiting)


def _normalised(documents: Sequence[RawDocument]) -> list[str]:
    return run_steps(raw_batch(documents), [Normalise()])["text"].to_pylist()


def _learnt(texts: Sequence[str], labels: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float32], float]:
    """Weights and bias."""
    from lifecycle.data.measures.compiled_classifier import BITS, beginning, features, learn

    stamps, room = np.zeros(1 << BITS, np.int32), np.empty(3 * MOST_BYTES + 8, np.int64)
    found: list[NDArray[np.int32]] = []
    for number, text in enumerate(texts, 1):
        own = beginning(np.frombuffer(text.encode(), np.uint8), MOST_BYTES)
        found.append(room[: features(own, folded_characters(), stamps, number, room)].astype(np.int32))
    ends = np.cumsum([0, *map(len, found)], dtype=np.int64)
    weights, squares = np.zeros((1 << BITS) + 1), np.full((1 << BITS) + 1, 1e-8)
    chance = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        learn(np.concatenate(found), ends, labels, chance.permutation(len(texts)), RATE, weights, squares)
    return weights[:-1].astype(np.float32), float(weights[-1])


def calibrated(sums: NDArray[np.float64], labels: NDArray[np.float64]) -> tuple[float, float]:
    """The slope and offset with which sums are the logarithms of odds, by Newton's method; targets a bit inside 0 and 1
    (Platt 1999, "Probabilistic Outputs for Support Vector Machines")."""
    num_bad = labels.sum()
    targets = np.where(labels > 0, (num_bad + 1) / (num_bad + 2), 1 / (len(labels) - num_bad + 2))
    inputs = np.stack([sums, np.ones_like(sums)], axis=1)
    line = np.array([1.0, 0.0])
    for _ in range(100):
        scores = 1 / (1 + np.exp(-(inputs @ line)))
        curvature = (inputs * (scores * (1 - scores))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, inputs.T @ (scores - targets))
        line -= step * min(1.0, 1 / max(np.abs(step).max(), 1e-12))
    return float(line[0]), float(line[1])


def quality(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> dict[str, float]:
    """How well scores tell bad documents (label 1) from good ones."""
    is_bad, is_found = labels > 0, scores >= THRESHOLD
    num_bad, num_good, hits = int(is_bad.sum()), int((~is_bad).sum()), int((is_bad & is_found).sum())
    ranks = rankdata(scores)
    places = np.minimum((scores * 10).astype(int), 9)
    error = sum(abs((scores - labels)[places == place].sum()) for place in range(10)) / len(scores)
    return {
        "documents": len(scores), "bad": num_bad,
        "auc": round(float((ranks[is_bad].sum() - num_bad * (num_bad + 1) / 2) / (num_bad * num_good)), 5),
        "f1": round(2 * hits / max(num_bad + int(is_found.sum()), 1), 5),
        "precision": round(hits / max(int(is_found.sum()), 1), 5), "recall": round(hits / num_bad, 5),
        "calibration_error": round(float(error), 5),
    }  # fmt: skip
