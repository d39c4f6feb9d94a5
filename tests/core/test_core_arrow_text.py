"""Texts as compiled loops read them."""

from itertools import pairwise

import pyarrow as pa
import pytest

from lifecycle.core.arrow_text import utf8


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["x", "é港", ""]),
        pa.array(["before", "x", "é港", "", "behind"]).slice(1, 3),
        pa.array(["x", "é港", ""]).dictionary_encode().dictionary_decode(),  # in memory that Arrow has made itself
        pa.array([], pa.string()),
    ],
    ids=["whole", "a slice", "computed", "none"],
)
def test_bytes_and_ends_are_those_of_the_texts_and_not_to_be_written_to(texts: pa.Array) -> None:
    data, ends = utf8(texts)
    assert [data[begin:end].tobytes().decode() for begin, end in pairwise(ends)] == texts.to_pylist()
    assert not data.flags.writeable and not ends.flags.writeable
