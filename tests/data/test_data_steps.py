"""Map steps: the same columns for any partitioning, and settings that decide columns are those of tagging's key."""

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from document_tables import data_config, numbered, raw
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.measures.filters import document_steps
from lifecycle.data.measures.steps import Limit, run_steps
from lifecycle.data.reading.raw import RawDocument, raw_batch
from lifecycle.data.tagging.partitions import tagged_schema

PIECES = (
    "The harbour of the old town", "def add(a, b):\n", "jane@company.org", "93.184.216.34", "cafÃ© isnâ€™t",
    "港は旧市街の北にあり", "- item\n", "...\n", "\n\n", "# ", "+44 20 7946 0958",
    "e\u0301", "x = 1\r\n", "\x07", "Der Hafen liegt nördlich",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join) | st.text(
    st.characters(codec="utf-8"), max_size=80
)
DOCUMENTS = st.lists(
    st.builds(
        raw,
        TEXTS,
        st.sampled_from(("text", "code", "markdown")),
        st.sampled_from(("a.py", "b/c.txt", "rows.jsonl:3")),
        st.sampled_from(("one", "two")),
        note=st.sampled_from(("jane@company.org", "none", 3, True)),
    ),
    min_size=1,
    max_size=12,
)


def run(documents: list[RawDocument], **settings: Any) -> list[dict[str, Any]]:
    steps = [step.measure for step in document_steps(data_config(**settings))]
    return run_steps(raw_batch(documents), steps).to_pylist()


@given(DOCUMENTS, st.randoms())
def test_columns_depend_on_the_document_alone(documents: list[RawDocument], chance: random.Random) -> None:
    expected = run(documents)
    cuts = sorted({0, *(chance.randrange(len(documents)) for _ in range(3)), len(documents)})
    parts = [documents[start:end] for start, end in pairwise(cuts)]
    assert [row for part in parts for row in run(part)] == expected
    order = chance.sample(range(len(documents)), len(documents))
    assert run([documents[at] for at in order]) == [expected[at] for at in order]


def test_every_step_writes_the_columns_that_it_declares() -> None:
    config = data_config()
    batch = raw_batch([raw("The harbour."), raw("x = 1\n", "code", "a.py")])
    columns = dict.fromkeys(batch.schema.names)
    for step in document_steps(config):
        batch = run_steps(batch, [step.measure])
        columns |= dict.fromkeys(step.measure.columns.names)
        assert set(step.edits) <= columns.keys()
    assert batch.schema.names == list(columns) == tagged_schema(config).names
    assert batch.schema.equals(tagged_schema(config))


@pytest.mark.parametrize(
    "settings",
    [
        {"language": {"min_score": 0.5}}, {"language": {"keep": ["en"]}}, {"pii": {"keep": ["email"]}},
        {"pii": {"max_count": {"card": 0}}},
        {"language": {"scores": {"en": 0.7}}}, {"language": {"min_script_share": 0.5}}, {"heldout_fraction": 0.2},
        {"quality": {"gopher": {"min_words": 51}}}, {"quality": {"repetition": None}}, {"quality": {"fineweb": {}}},
        {"quality": {"languages": {"de": {"gopher": {"min_words": 9}}}}}, {"quality": {"stop_words": {}}},
        {"quality": {"stop_words": {"en": ["the", "be"]}}},
        {"quality": {"short_line": 20}}, {"lines": {"c4": {}}}, {"lines": {"max_removed_words": None}},
        {"dedup": {"jaccard": 0.9}}, {"dedup": {"bands": 20}}, {"decontamination": {"ngram": 9}},
        {"decontamination": {"min_overlap": 0.4}}, {"heldout_bytes": 99},
    ],
)  # fmt: skip
def test_settings_of_map_steps_are_tagging_s_and_all_others_selection_s(settings: dict[str, Any]) -> None:
    before, after = data_config(), data_config(**settings)
    changes = [step.measure for step in document_steps(before)] != [step.measure for step in document_steps(after)]
    assert (before.tagging() != after.tagging()) == changes
    assert (before.selection() != after.selection()) == (not changes)


def test_sources_and_sizes_are_tagging_s_and_workers_nobody_s() -> None:
    before = data_config()
    for after in (data_config("/other"), data_config(max_document_bytes=9)):
        assert before.tagging() != after.tagging() and before.selection() == after.selection()
    after = data_config(workers=3)
    assert (before.tagging(), before.selection()) == (after.tagging(), after.selection())


@given(
    st.lists(st.integers(-9, 9) | st.none(), max_size=30),
    st.integers(-9, 9), st.integers(0, 5), st.sampled_from(("low", "high")),
)  # fmt: skip
def test_a_stricter_limit_never_removes_fewer(values: list[int | None], limit: int, by: int, side: str) -> None:
    documents = numbered(pa.table({"score": pa.array(values, pa.int64())}))
    if side == "low":
        loose, strict = Limit("r", "score", "{value}", low=limit), Limit("r", "score", "{value}", low=limit + by)
    else:
        loose, strict = Limit("r", "score", "{value}", high=limit), Limit("r", "score", "{value}", high=limit - by)
    failing = {failure.ordinal for failure in loose(documents)}
    assert failing <= {failure.ordinal for failure in strict(documents)}
    outside = (lambda value: value < limit) if side == "low" else (lambda value: value > limit)
    assert failing == {n for n, value in enumerate(values) if value is not None and outside(value)}


def test_a_limit_for_one_language_and_its_detail() -> None:
    documents = numbered(pa.table({"score": [1, 1, None], "language": ["en", "de", "en"]}))
    limit = Limit("few", "score", "{column} {value} < {low}", low=2, language="en")
    assert [tuple(failure) for failure in limit(documents)] == [(0, "few", "score 1 < 2")]
    assert not list(limit(documents.slice(0, 0)))
    assert not list(limit(documents.set_column(0, "score", pa.array(np.full(3, 5)))))
