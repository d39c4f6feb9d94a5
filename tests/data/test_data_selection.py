"""Selection: thresholds over columns, every reason kept, the first step that removes counted, nothing changed."""

from functools import cache
from itertools import combinations
from typing import Any

import pyarrow as pa
import pytest
from document_tables import data_config, numbered, raw, table_of, tagged, verdicts
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.measures.filters import document_steps
from lifecycle.data.measures.steps import Failure
from lifecycle.data.selecting.selection import REMOVALS, kept_documents, remaining, removals, removed_documents, select

FRENCH = "Le port se trouve au nord de la vieille ville et fut construit en trois étapes. "
ENGLISH = "The harbour lies to the north of the old town and was built in three stages of the old king. "


@cache
def corpus() -> pa.Table:
    return tagged([
        raw(ENGLISH), raw(ENGLISH * 5), raw(FRENCH), raw(FRENCH * 3), raw("x = 1\n", "code", "a.py"), raw("# # # #"),
        raw(" ".join(f"word{n} of the" for n in range(60))), raw("x" * 2000, "code", "b.py"),
        raw("港は旧市街の北にあり"),
    ])  # fmt: skip


def removed_by(**settings: Any) -> set[int]:
    return set(select(corpus(), document_steps(data_config(**settings)))["ordinal"].to_pylist())


@given(st.lists(st.integers(0, 200), min_size=2, max_size=2).map(sorted))
def test_raising_a_minimum_never_removes_fewer(limits: list[int]) -> None:
    low, high = ({"quality": {"gopher": {"min_words": limit}}} for limit in limits)
    assert removed_by(**low) <= removed_by(**high)


@given(st.lists(st.integers(200, 2000), min_size=2, max_size=2).map(sorted))
def test_raising_a_maximum_never_removes_more(limits: list[int]) -> None:
    low, high = ({"quality": {"gopher": {"max_words": limit}}} for limit in limits)
    assert removed_by(**high) <= removed_by(**low)


def test_families_of_rules_add_up_and_keeping_a_language_never_removes_more() -> None:
    families = ("gopher", "repetition", "starcoder")
    alone = {name: removed_by(quality={other: None for other in families if other != name}) for name in families}
    for size in range(len(families) + 1):
        for off in combinations(families, size):
            on = [alone[name] for name in families if name not in off]
            assert removed_by(quality=dict.fromkeys(off)) == set().union(*on)
    assert all(alone.values())
    assert removed_by(language={"keep": ["en", "fr"]}) <= removed_by(language={"keep": ["en"]})
    assert removed_by() <= removed_by(language={"keep": ["en", "fr"]})


def test_every_reason_is_kept_and_the_first_step_counts() -> None:
    config = data_config(language={"keep": ["en"]})
    french = verdicts(corpus(), select(corpus(), document_steps(config)))[2]
    assert (french.step, french.reason) == ("language", "language_fr")
    assert french.detail is not None and french.detail.startswith("fr with score ")
    assert french.reasons is not None
    assert [(entry["step"], entry["reason"]) for entry in french.reasons] == [
        ("language", "language_fr"), ("quality", "too_few_words"),
    ]  # fmt: skip
    assert french.reasons[1]["detail"] == "16 words < 50"


def test_selecting_changes_no_document_and_each_document_is_judged_alone() -> None:
    steps = document_steps(data_config(language={"keep": ["en"]}))
    expected = select(corpus(), steps)
    parts = [corpus().slice(at, 2) for at in range(0, len(corpus()), 2)]
    alone = pa.concat_tables(select(part, steps) for part in parts)
    assert verdicts(corpus(), alone) == verdicts(corpus(), expected)
    removed, kept = removed_documents(corpus(), expected), remaining(corpus(), expected)
    assert len(removed) and len(kept)
    columns = corpus().column_names
    assert pa.concat_tables([removed.select(columns), kept]).sort_by("ordinal").equals(corpus().combine_chunks())
    assert kept_documents(kept).schema.equals(removed.schema)
    assert all(row["step"] is row["reasons"] is None for row in kept_documents(kept).to_pylist())


def test_removals_of_several_steps_keep_the_order_of_the_documents() -> None:
    documents = table_of(["a", "b", "c", "d"])
    late = removals("first", [Failure(3, "r1", "x")])
    early = removals("second", [Failure(1, "r2", "y"), Failure(3, "r3", "z")])
    removed = removed_documents(documents, pa.concat_tables([late, early]))
    assert removed["ordinal"].to_pylist() == [1, 3]
    assert removed["step"].to_pylist() == ["second", "first"]
    assert removed["detail"].to_pylist() == ["y", "x"]
    assert [len(reasons) for reasons in removed["reasons"].to_pylist()] == [1, 2]


@pytest.mark.parametrize("documents", [table_of(["a", "b"]), numbered(table_of([]).drop_columns("ordinal"))])
def test_no_removals(documents: pa.Table) -> None:
    nothing = REMOVALS.empty_table()
    assert remaining(documents, nothing).equals(documents)
    assert len(removed_documents(documents, nothing)) == 0
    assert removals("step", []).equals(nothing)
