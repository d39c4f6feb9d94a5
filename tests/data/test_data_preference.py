"""Which of a group of duplicates stays: the order is that of Python's sort, and each step keeps the preferred one."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from document_tables import at_addresses, data_config, stored, table_of
from duplicates import made_texts, named_in, removed_of
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, validate
from lifecycle.data.config import DataConfig, DedupConfig
from lifecycle.data.selecting.preference import criteria_of, ranks
from lifecycle.data.selecting.similarity import jaccard_similarity, shingles

COLUMNS = pa.schema([
    ("text", pa.string()), ("source", pa.string()), ("license", pa.string()), ("time", pa.string()),
    ("text_bytes", pa.int64()), ("script_share", pa.float64()),
])  # fmt: skip
TIMES = [None, "2019", "2020-05", "2020-05-02", "2020-05-02T01:00:00", "2021-01-01T00:00:00Z"]  # ascending
LICENSES = ["MIT", "CC0-1.0 OR GPL-3.0-only", "MIT AND CC0-1.0", "GPL-3.0-only", "unknown", "(mit OR X) AND CC0-1.0"]
ROWS = st.fixed_dictionaries({
    "text": st.just(""), "source": st.sampled_from(["a", "b"]), "license": st.sampled_from(LICENSES),
    "time": st.sampled_from(TIMES), "text_bytes": st.integers(0, 3), "script_share": st.sampled_from([None, 0.1, 0.5]),
})  # fmt: skip


def config(prefer: list[str], **more: Any) -> DataConfig:
    sources = [{"name": name, "path": "."} for name in ("b", "a")]
    rights = {"licenses": ["CC0-1.0", "MIT"]}
    return validate(DataConfig, {"sources": sources, "rights": rights, "dedup": {"prefer": prefer}, **more})


def expected(name: str, row: dict[str, Any]) -> float:
    """What a criterion makes of a row, written down a second time; lower is better."""
    time, score = TIMES.index(row["time"]), row["script_share"]
    last = float("inf")
    return {
        "source": "ba".index(row["source"]),
        "license": dict(zip(LICENSES, (1, 0, 1, 2, 3, 1), strict=True))[row["license"]],
        "longest": -row["text_bytes"], "shortest": row["text_bytes"],
        "newest": -time if time else last, "oldest": time or last,
        "highest script_share": last if score is None else -score,
        "lowest script_share": last if score is None else score,
    }[name]  # fmt: skip


NAMES = ["source", "license", "longest", "shortest", "newest", "oldest", "highest script_share", "lowest script_share"]


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=8), st.lists(st.sampled_from(NAMES), max_size=4, unique=True))
def test_the_order_is_that_of_a_sort(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], prefer: list[str]
) -> None:
    documents = pa.Table.from_pylist(rows, schema=COLUMNS)
    numbered = documents.append_column("ordinal", pa.array(range(len(rows)), pa.int64()))
    found = ranks(stored(numbered, tmp_path_factory.mktemp("rows")), config(prefer))
    order = sorted(range(len(rows)), key=lambda at: (*(expected(name, rows[at]) for name in prefer), at))
    assert np.argsort(found).tolist() == order and sorted(found.tolist()) == list(range(len(rows)))


def test_each_step_keeps_the_preferred_document(tmp_path: Path) -> None:
    base = " ".join(f"word{number}" for number in range(200))
    texts = ["one", "two", base, base.replace("word150", "new"), base, "three", "two"]
    urls = ["http://a.org", "http://a.org", None, None, None, None, None]
    documents = at_addresses(table_of(texts), urls)
    removed = removed_of(documents, tmp_path, DedupConfig(addresses=True), ranks=[6, 5, 4, 3, 0, 1, 2])
    rows = [tuple(row.values()) for row in removed.sort_by("ordinal").to_pylist()]
    assert [(ordinal, step) for ordinal, step, _, _ in rows] == [
        (0, "address_duplicates"), (1, "exact_duplicates"), (2, "exact_duplicates"), (3, "near_duplicates"),
    ]  # fmt: skip
    kept = ["same address as s:f1", "same text as s:f6", "same text as s:f4"]
    assert [detail for *_, detail in rows[:3]] == kept and rows[3][3].endswith("with s:f4")


def test_every_group_keeps_one_document_the_preferred_one(tmp_path: Path) -> None:
    texts = made_texts(groups=15, copies=3) + ["the same text"] * 3
    order = random.Random(1).sample(range(len(texts)), len(texts))
    removed = removed_of(table_of(texts), tmp_path, DedupConfig(bands=21, rows=6), ranks=order)
    stays = dict(zip(removed["ordinal"].to_pylist(), named_in(removed["detail"]), strict=True))
    assert len(stays) > 25 and len(set(removed["ordinal"].to_pylist())) == len(removed)
    assert all(order[kept] < order[gone] for gone, kept in stays.items())
    sets = [shingles(text) for text in texts]
    for at, gone in enumerate(stays):
        alike = [other for other in range(len(texts)) if jaccard_similarity(sets[gone], sets[other]) >= 0.8]
        assert len(alike) > 1 and (stays[gone] not in stays or removed["step"][at].as_py() == "exact_duplicates")


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match=r"dedup\.prefer.*'licence' says of no document.*choose from source, license"):
        config(["licence"])
    with pytest.raises(ConfigError, match=r"'highest word_cuont'.*did you mean 'word_count'"):
        criteria_of(config(["highest word_cuont"]))
    with pytest.raises(ConfigError, match=r"'lowest url': documents have no column of numbers 'url'"):
        criteria_of(config(["lowest url"]))


def test_scores_that_were_made_elsewhere_can_decide(tmp_path: Path) -> None:
    documents = table_of(["a", "b", "c"]).append_column("id", pa.array([digit * 32 for digit in "abc"]))
    rows = [{"id": "b" * 32, "score": 3.0}, {"id": "c" * 32, "score": 5}]
    (tmp_path / "grades.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = [{"name": "grade", "path": str(tmp_path / "grades.jsonl")}]
    found = ranks(stored(documents, tmp_path / "rows"), config(["highest grade_score"], scores=scores))
    with pytest.raises(ConfigError, match="no column of numbers 'grade_score'"):
        criteria_of(config(["highest grade_score"]))
    assert found.tolist() == [2, 1, 0]


def test_the_preference_is_a_part_of_selection_only() -> None:
    one, other = data_config(), data_config(dedup={"prefer": ["longest"]})
    assert one.tagging() == other.tagging() and one.selection() != other.selection()
