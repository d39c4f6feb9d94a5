"""The funnel: joined parts are the whole."""

from functools import cache

import pyarrow as pa
from document_tables import data_config, raw, tagged
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.measures.filters import document_steps
from lifecycle.data.selecting.funnel import Funnel
from lifecycle.data.selecting.selection import removed_documents, select
from lifecycle.data.tagging.tagging import Reading

TEXTS = (
    "Too short.", "the and to of with that be have " * 12, "word " * 60, "- item of a list\n" * 40, "x" * 400,
    "jane@company.org wrote to the teacher of the school with a letter that has been read. " * 8,
)  # fmt: skip
STEPS = document_steps(data_config())


@cache
def documents() -> pa.Table:
    """Tagged by a test, not as tests are collected: each process would compile all loops for 12 s."""
    return tagged([raw(text, path=f"{number}") for number, text in enumerate(TEXTS)])


def counted(funnel: Funnel, numbers: list[int]) -> Funnel:
    if numbers:
        ordinals = pa.array(range(len(numbers)), pa.int64())
        rows = documents().take(numbers)
        rows = rows.set_column(rows.schema.get_field_index("ordinal"), "ordinal", ordinals)
        funnel.add(rows, removed_documents(rows, select(rows, STEPS)), rows.slice(0, 0), {})
    return funnel


@given(st.lists(st.lists(st.integers(0, len(TEXTS) - 1), max_size=8), min_size=1, max_size=4))
def test_a_funnel_of_parts_is_that_of_all_documents(parts: list[list[int]]) -> None:
    whole, joined = Funnel(STEPS), Funnel(STEPS)
    for part in parts:
        counted(whole, part)
        joined.join(counted(Funnel(STEPS), part))
    reading = Reading(1, 1, ())
    assert joined.entries(reading) == whole.entries(reading)


def test_text_that_lines_lose_is_counted_at_their_step() -> None:
    config = data_config(lines={"c4": {}}, language={"min_score": 0})
    steps = document_steps(config)
    texts = ("The harbour lies to the north — of it.\nHome →\n", "Short →\n", "There is no such line in this.\n")
    rows = tagged([raw(text, path=text[:5]) for text in texts], config)
    funnel = Funnel(steps)
    funnel.add(rows, removed_documents(rows, select(rows, steps)), rows.slice(0, 0), {})
    flow = {entry["step"]: entry for entry in funnel.entries(Reading(1, 1, ()))}
    sizes = [len(text.encode()) for text in texts]
    cut = len("Home →\n".encode())
    assert flow["read"]["bytes_out"] == flow["lines"]["bytes_in"] == sum(sizes)
    assert flow["lines"]["reasons"] == {"no_line_left": 1} and flow["lines"]["edits"]["bytes_cut"] == cut
    assert flow["lines"]["bytes_out"] == flow["quality"]["bytes_in"] == sum(sizes) - cut - sizes[1]


def test_the_parts_differ_in_their_reasons() -> None:
    reasons = select(documents(), STEPS)["reason"].unique().to_pylist()
    assert len(reasons) >= 4
