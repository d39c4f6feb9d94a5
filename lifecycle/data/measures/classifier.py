"""Classifiers of documents by hashed n-grams: how probably a text is like the bad examples and not like the good ones.

Logistic regression over words, pairs of words and runs of characters (`compiled_classifier.py`), trained by
`classifier_training.py` and calibrated: of the documents with a score of 0.9 nine in ten are bad. One mechanism serves
spam, toxicity and quality. A classifier is one `.npz` file of about 1 MB, without pickled objects.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.core.config import ConfigError
from lifecycle.core.files import temporary
from lifecycle.data.ngrams import folded_characters

MOST_BYTES = 20_000  # of a text that are read, from its beginning
FORMAT = "lifecycle.classifier.1"  # hashes and features as in this version of `compiled_classifier.py`


class Classifier(NamedTuple):
    """A trained classifier; `scale` is the slope and the bias that turn a sum of weights into the odds' logarithm."""

    weights: NDArray[np.float32]
    bias: float
    scale: tuple[float, float]
    manifest: dict[str, Any]


def write_classifier(path: Path, classifier: Classifier) -> None:
    """Writes the file, whole or not at all."""
    manifest = json.dumps({"format": FORMAT, **classifier.manifest}, sort_keys=True)
    numbers = np.array([classifier.bias, *classifier.scale])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(unfinished := temporary(path), "wb") as file:
        np.savez_compressed(file, weights=classifier.weights, numbers=numbers, manifest=np.array(manifest))
    unfinished.replace(path)


def read_classifier(path: Path) -> Classifier:
    """Reads a classifier; raises `ConfigError` for a file that is none."""
    found = path.stat()
    return _read(path, (found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=8)
def _read(path: Path, stat: tuple[int, int]) -> Classifier:
    del stat
    try:
        with np.load(path, allow_pickle=False) as file:
            weights, numbers, manifest = file["weights"], file["numbers"].tolist(), json.loads(str(file["manifest"]))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(f"{path}: no classifier ({error}); make one with `lifecycle data train-classifier`") from None
    if manifest.pop("format", None) != FORMAT:
        raise ConfigError(f"{path}: a classifier of another version; train it again")
    bias, slope, offset = numbers
    return Classifier(weights, bias, (slope, offset), manifest)


def score(classifier: Classifier, texts: pa.Array) -> NDArray[np.float64]:
    """The probability of each text that it is bad, rounded to four places."""
    slope, offset = classifier.scale
    sums = weigh(classifier.weights, classifier.bias, texts)
    return (1 / (1 + np.exp(-(slope * sums + offset)))).round(4)


def weigh(weights: NDArray[np.float32], bias: float, texts: pa.Array) -> NDArray[np.float64]:
    """Each text's sum of weights."""
    from lifecycle.data.measures.compiled_classifier import weigh_texts

    sums = np.zeros(len(texts))
    if len(texts):
        weigh_texts(*utf8(texts), MOST_BYTES, folded_characters(), weights, bias, sums)
    return sums
