"""Classifiers: what they learn, what their file holds, determinism, and how they remove documents."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from document_tables import data_config, judged, raw

from lifecycle.core.config import ConfigError
from lifecycle.data.measures.classifier import read_classifier, score
from lifecycle.data.measures.classifier_training import calibrated, quality, train_classifier
from lifecycle.data.measures.unwanted import unwanted_step

GOOD = "the harbour lies north of an old town where boats unload fish and people walk along quiet streets"
BAD = "click now to win free money best offer guaranteed casino bonus cheap pills order today limited prize"
COMMON = "and we see it with this one as they have been for some time in a place that is here"


def corpus(folder: Path, words: str, seed: int, num: int = 400) -> Path:
    chance = random.Random(seed)
    folder.mkdir()
    for number in range(num):
        text = " ".join(chance.choices(words.split(), k=3) + chance.choices(COMMON.split(), k=20))
        (folder / f"{number}.txt").write_text(f"{text}\n")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path, Path]:
    root = tmp_path_factory.mktemp("classifier")
    good, bad = corpus(root / "good", GOOD, 1), corpus(root / "bad", BAD, 2)
    manifest = train_classifier([good], [bad], root / "spam.npz")
    return root / "spam.npz", manifest, good, bad


def test_it_tells_the_kinds_apart_on_held_out_documents(trained: tuple[Path, dict[str, Any], Path, Path]) -> None:
    path, manifest, _, _ = trained
    heldout = manifest["heldout"]
    assert manifest["good"] == manifest["bad"] == 400 and 50 < heldout["documents"] < 120
    assert heldout["f1"] > 0.95 and heldout["auc"] > 0.98 and heldout["calibration_error"] < 0.1
    classifier = read_classifier(path)
    assert classifier.manifest == manifest
    scores = score(classifier, pa.array(["Cheap PILLS, click now!", "Boats in the harbour.", ""]))
    assert scores[0] > 0.7 > 0.3 > scores[1] and 0 <= scores[2] <= 1


def test_same_documents_same_file(trained: tuple[Path, dict[str, Any], Path, Path], tmp_path: Path) -> None:
    path, manifest, good, bad = trained
    for number, file in enumerate(sorted(good.iterdir())):  # in another order, and one twice
        (tmp_path / "good").mkdir(exist_ok=True)
        (tmp_path / "good" / f"{1000 - number}.txt").write_text(file.read_text())
    again = train_classifier([tmp_path / "good"], [bad], tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes() and again == manifest
    train_classifier([good], [bad], tmp_path / "other.npz", seed=1)
    assert (tmp_path / "other.npz").read_bytes() != path.read_bytes()


def test_a_score_does_not_depend_on_the_texts_beside_it(trained: tuple[Path, dict[str, Any], Path, Path]) -> None:
    classifier, _, good, bad = read_classifier(trained[0]), *trained[1:]
    texts = [file.read_text() for folder in (good, bad) for file in sorted(folder.iterdir())[:20]] + ["é" * 30_000]
    together = score(classifier, pa.array(texts))
    assert [score(classifier, pa.array([text]))[0] for text in texts] == together.tolist()
    assert score(classifier, pa.array(texts[::-1])).tolist() == together.tolist()[::-1]


def test_documents_above_the_threshold_are_removed(trained: tuple[Path, dict[str, Any], Path, Path]) -> None:
    settings = {"name": "spam", "path": str(trained[0]), "max": 0.6}
    step = unwanted_step(data_config(classifiers=[settings]))
    row, verdict = judged(step, raw("click now: free money, casino bonus, cheap pills"))
    assert row["spam_score"] > 0.6 and verdict.reason == "spam" and "spam_score" in str(verdict.detail)
    assert judged(step, raw("quiet streets of the old town"))[1].reason is None
    loose = data_config(classifiers=[settings | {"max": 1}])
    assert loose.tagging() == data_config(classifiers=[settings]).tagging()
    assert judged(unwanted_step(loose), raw("click now: free money"))[1].reason is None


def test_what_is_in_both_is_left_out_and_too_few_are_refused(tmp_path: Path) -> None:
    good, bad = corpus(tmp_path / "good", GOOD, 3, 300), corpus(tmp_path / "bad", BAD, 4, 300)
    (bad / "same.txt").write_text((good / "0.txt").read_text())
    (bad / "again.txt").write_text((bad / "0.txt").read_text())
    (bad / "binary.txt").write_bytes(b"\0\1\2")
    manifest = train_classifier([good], [bad], tmp_path / "c.npz")
    assert (manifest["both"], manifest["repeated"], manifest["skipped"], manifest["bad"]) == (1, 2, 1, 302)
    rows = tmp_path / "good.jsonl"
    rows.write_text('{"text": "the same"}\n' * 400)
    with pytest.raises(ConfigError, match="1 good and 301 bad documents that differ are too few"):
        train_classifier([rows], [bad], tmp_path / "c.npz")


def test_other_files_are_no_classifiers(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    path.write_bytes(b"PK\3\4 nothing")
    with pytest.raises(ConfigError, match="no classifier"):
        read_classifier(path)
    np.savez(path, weights=np.zeros(2), numbers=np.zeros(3), manifest=np.array("{}"))
    with pytest.raises(ConfigError, match="another version"):
        read_classifier(path)
    np.savez(path, weights=np.array([{"a": 1}], object), numbers=np.zeros(3), manifest=np.array("{}"))
    with pytest.raises(ConfigError, match="no classifier"):
        read_classifier(path)


def test_calibrated_scores_are_the_shares_of_bad_documents() -> None:
    chance = np.random.default_rng(0)
    sums = chance.normal(0, 3, 20_000)
    labels = (chance.random(20_000) < 1 / (1 + np.exp(-(0.5 * sums + 1)))).astype(float)
    assert calibrated(sums, labels) == pytest.approx((0.5, 1), abs=0.05)
    assert quality(1 / (1 + np.exp(-(0.5 * sums + 1))), labels)["calibration_error"] < 0.01
    separated = calibrated(np.array([-2.0, -1.0, 1.0, 2.0] * 20), np.array([0.0, 0.0, 1.0, 1.0] * 20))
    assert 0 < separated[0] < 100


def test_auc_and_f1_of_known_scores() -> None:
    found = quality(np.array([0.9, 0.8, 0.4, 0.6, 0.1, 0.2]), np.array([1.0, 1, 1, 0, 0, 0]))
    assert found["auc"] == pytest.approx(8 / 9, abs=1e-4)
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3), abs=1e-4)
