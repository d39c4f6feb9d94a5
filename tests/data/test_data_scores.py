"""Scores in files: the join by id, limits over it, what it changes in keys, and classifiers that learn from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_tables import data_config, raw, stored, tagged
from hypothesis import given
from hypothesis import strategies as st
from test_data_classifier import BAD, GOOD, corpus
from test_data_pipeline import essay

from lifecycle.cli.data import data
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.documents import SPLITS, read_documents
from lifecycle.data.inspecting.distributions import scores_of
from lifecycle.data.measures.classifier import read_classifier, score
from lifecycle.data.measures.classifier_training import train_on_scores
from lifecycle.data.measures.filters import document_steps
from lifecycle.data.measures.scores import ScoreTable, read_scores
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.data.tagging.tagging import Reading, write_reading
from lifecycle.text.row_files import RowError

IDS = st.binary(min_size=16, max_size=16) | st.sampled_from([bytes(16), bytes(15) + b"\1", b"\1" + bytes(15)])


@given(st.dictionaries(IDS, st.floats(-9, 9), max_size=20), st.lists(IDS, max_size=20))
def test_every_document_gets_its_own_score(known: dict[bytes, float], asked: list[bytes]) -> None:
    ids = np.array(sorted(known), "S16")
    table = ScoreTable(ids, np.array([known[name] for name in sorted(known)]))
    wanted = [*asked, *known]
    found = table.of(pa.array([name.hex() for name in wanted], pa.string()))
    np.testing.assert_array_equal(found, [known.get(name, np.nan) for name in wanted])


class Scored:
    """Twelve tagged documents, of which the first ten have a score, their number."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scores = folder, folder / "scores.jsonl"
        self.table = tagged([raw(essay(number), path=f"{number}.txt", source="mine") for number in range(12)])
        stored(self.table, folder / "tagging")
        write_reading(folder / "tagging", Reading(12, 1, ()))
        self.ids = self.table["id"].to_pylist()
        self.write([{"id": name, "score": number, "bits": number / 2} for number, name in enumerate(self.ids[:10])])

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.scores.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def select(self, out: str, **settings: Any) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        own = [{"name": "grade", "path": str(self.scores), **settings}] if settings else []
        config = data_config(workers=1, quality={"repetition": None}, scores=own)
        (self.folder / out).mkdir()
        stats = prepare_documents(self.folder / "tagging", config, self.folder / out, Silent(), 0)
        return stats, {split: list(read_documents(self.folder / out, split)) for split in SPLITS}


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    return Scored(tmp_path)


def test_limits_remove_and_a_document_without_a_score_passes(scored: Scored) -> None:
    stats, rows = scored.select("out", min=3, max=7)
    removed = {row["path"]: (row["step"], row["reason"], row["detail"]) for row in rows["removed"]}
    assert removed.keys() == {f"{number}.txt" for number in (0, 1, 2, 8, 9)}
    assert removed["8.txt"] == ("scores", "grade", "grade_score 8 outside [3, 7]")
    found = {row["path"]: row["grade_score"] for own in rows.values() for row in own}
    assert found == {f"{number}.txt": float(number) if number < 10 else None for number in range(12)}
    assert stats["without_score"] == {"grade_score": 2}
    (entry,) = [entry for entry in stats["funnel"] if entry["step"] == "scores"]
    assert (entry["documents_in"], entry["documents_out"], entry["reasons"]) == (12, 7, {"grade": 5})
    shown = scores_of(document_steps(data_config(scores=[{"name": "g", "path": str(scored.scores), "min": 1}])))[-1]
    assert (shown.column, shown.low, shown.reasons) == ("g_score", 1, ("g",))


def test_another_column_and_parquet_are_read_as_well(scored: Scored) -> None:
    rows = [{"id": name, "bits": number / 2} for number, name in enumerate(scored.ids)]
    pq.write_table(pa.Table.from_pylist(rows), scored.scores)
    _, found = scored.select("out", column="bits", max=2)
    assert sorted(row["bits"] if "bits" in row else row["grade_score"] for row in found["removed"]) == [
        number / 2 for number in range(5, 12)
    ]


def test_without_limits_it_is_a_column_alone(scored: Scored) -> None:
    _, rows = scored.select("out", column="score")
    assert not [row for row in rows["removed"] if row["step"] == "scores"]
    assert {row["grade_score"] for own in rows.values() for row in own} == {None, *map(float, range(10))}
    assert (
        scores_of(document_steps(data_config(scores=[{"name": "g", "path": str(scored.scores)}])))[-1].column
        != "g_score"
    )


def test_a_run_without_scores_is_what_it_was(scored: Scored) -> None:
    stats, rows = scored.select("out")
    assert "without_score" not in stats and "scores" not in {entry["step"] for entry in stats["funnel"]}
    assert "grade_score" not in rows["kept"][0]


def test_scores_are_selection_s_by_their_content(scored: Scored, tmp_path: Path) -> None:
    def config(path: Path = scored.scores, **settings: Any) -> Any:
        return data_config(scores=[{"name": "grade", "path": str(path), "min": 3, **settings}])

    before, plain = config(), data_config()
    selection = before.selection()
    assert before.tagging() == plain.tagging() and before.selection() != plain.selection()
    (tmp_path / "copy.jsonl").write_bytes(scored.scores.read_bytes())
    assert config(tmp_path / "copy.jsonl").selection() == before.selection() != config(min=4).selection()
    scored.write([{"id": scored.ids[0], "score": 1}])
    changed = config()
    assert changed.selection() != selection and changed.tagging() == before.tagging()


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        ("", ConfigError, "no scores in it"),
        ('{"id": "1234", "score": 1}', ConfigError, r":1: id '1234' is no document's"),
        ('{"id": "%s", "score": 1}' % ("zz" * 16), ConfigError, "is no document's"),
        ('{"id": "%s", "scor": 1}' % ("00" * 16), ConfigError, "column 'score' is no number; did you mean 'scor'"),
        ('{"id": "%s", "score": true}' % ("00" * 16), ConfigError, "is no number"),
        (f'{{"id": "{"00" * 16}", "score": {10**400}}}', ConfigError, "a number of 1329 bits, no score"),
        ('{"id": "%s", "score": NaN}' % ("00" * 16), RowError, "not valid JSON"),
    ],
)
def test_what_is_no_score_is_said_with_its_line(line: str, error: type[Exception], said: str, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(f"{line}\n")
    with pytest.raises(error, match=said):
        read_scores(tmp_path / "s.jsonl", "score")


def test_of_an_id_that_is_there_twice_the_first_score_counts(tmp_path: Path) -> None:
    rows = [{"id": "ab" * 16, "score": number} for number in (3, 4)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_scores(tmp_path / "s.jsonl", "score").of(pa.array(["ab" * 16, "00" * 16])).tolist()[0] == 3
    with pytest.raises(ValueError, match="something else already"):
        data_config(scores=[{"name": name, "path": str(tmp_path / "s.jsonl")} for name in ("a", "a")])


def test_a_classifier_learns_from_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = corpus(tmp_path / "good", GOOD, 1), corpus(tmp_path / "bad", BAD, 2)
    texts = [(file.read_text(), grade) for grade, folder in ((4, folders[0]), (1, folders[1])) for file in
             sorted(folder.iterdir())]  # fmt: skip
    table = tagged([raw(text) for text, _ in texts])
    documents = tmp_path / "documents"
    documents.mkdir()
    pq.write_table(table.drop_columns("ordinal"), documents / "kept-00000.parquet")
    rows = [{"id": name, "score": grade} for name, (_, grade) in zip(table["id"].to_pylist(), texts, strict=True)]
    lines = [json.dumps(row) + "\n" for row in (*rows[:-10], {"id": "00" * 16, "score": 2})]
    (tmp_path / "scores.jsonl").write_text("".join(lines))
    found = train_on_scores(tmp_path / "scores.jsonl", documents, 3, tmp_path / "grade.npz")
    assert (found["good"], found["bad"], found["without_document"], found["threshold"]) == (400, 390, 1, 3)
    assert found["heldout"]["auc"] > 0.98 and found["heldout"]["f1"] > 0.95
    scores = score(
        read_classifier(tmp_path / "grade.npz"), pa.array(["Cheap pills, click now!", "Boats in the harbour."])
    )
    assert scores[0] > 0.6 > 0.4 > scores[1]
    own = ["--scores", str(tmp_path / "scores.jsonl"), "--documents", str(documents)]
    command = ["train-classifier", str(tmp_path / "again.npz"), *own]
    data([*command, "--threshold", "3"], result_action="return_value")
    assert "good 400, bad 390" in capsys.readouterr().out
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "grade.npz").read_bytes()
    for more in ([], ["--threshold", "3", "--good", str(folders[0])]):
        with pytest.raises(ConfigError, match="give --good and --bad examples, or --scores"):
            data([*command, *more], result_action="return_value")
    with pytest.raises(ConfigError, match="too few"):
        train_on_scores(tmp_path / "scores.jsonl", documents, 9, tmp_path / "grade.npz")
