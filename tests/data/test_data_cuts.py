"""What is left of a text that is cut, where its personal data is then, and what is kept of the passages."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from document_tables import numbered, stored
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.selecting.cut_sizes import cut_sizes
from lifecycle.data.selecting.cuts import (
    CutFile,
    CutStretch,
    CutWriter,
    Spans,
    left_of,
    merged,
    with_passages,
    without_cuts,
)
from lifecycle.data.selecting.document_text import widened


def spans_of(*pairs: tuple[int, int]) -> Spans:
    return np.array(pairs, np.int64).reshape(-1, 2)


def cut_words(text: str, *words: str) -> str:
    """The text without the first occurrence of each."""
    data = text.encode()
    return left_of(data, spans_of(*((data.index(w := word.encode()), data.index(w) + len(w)) for word in words)))[
        0
    ].decode()


@pytest.mark.parametrize(
    ("text", "cut", "left"),
    [
        ("One.\nmenu\nTwo.\n", ["menu\n"], "One.\nTwo.\n"),  # a line leaves no gap
        ("One.\n\nmenu\n\nTwo.\n", ["menu\n"], "One.\n\nTwo.\n"),  # nor two empty lines
        ("menu\n\nOne.\n", ["menu\n"], "One.\n"),
        ("One.\n\nfooter", ["footer"], "One."),
        ("One.\n\nfooter\n", ["footer\n"], "One.\n"),
        ("One.\nmenu\n\nmore\n\nTwo.\n", ["menu\n", "more\n"], "One.\n\nTwo.\n"),
        ("He came and went away again.\n", ["and went"], "He came\n\naway again.\n"),
        ("He came.\nand went away.\n", ["and went"], "He came.\n\naway.\n"),
        ("He came.\n\nand went away.\n", ["and went"], "He came.\n\naway.\n"),
        ("and went away.\n", ["and went"], "away.\n"),
        ("He came and went\n", ["and went"], "He came\n"),
        ("One two\nline\nthree four.\n", ["two\n", "line\n", "three"], "One\n\nfour.\n"),
        ("One.\n", ["One.\n"], ""),
        ("\u00e9t\u00e9 \u4e2d\u6587 x \u00fc.\n", ["\u4e2d\u6587"], "\u00e9t\u00e9\n\nx \u00fc.\n"),
        ("nothing\n", [], "nothing\n"),
    ],
)
def test_what_is_left_reads_as_text(text: str, cut: list[str], left: str) -> None:
    assert cut_words(text, *cut) == left


TEXTS = st.text(st.sampled_from("ab \n\u00e9"), max_size=40)


@given(TEXTS, st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=5))
def test_what_is_left_is_pieces_of_the_text_in_order(text: str, drawn: list[tuple[int, int]]) -> None:
    starts = [*np.append(0, np.cumsum([len(char.encode()) for char in text])).tolist()]
    places = [(min(at, len(text)), min(at + size, len(text))) for at, size in drawn]
    spans = spans_of(*((starts[low], starts[high]) for low, high in places if low < high))
    data = text.encode()
    left, pieces = left_of(data, spans)
    is_cut = np.zeros(len(data), bool)
    for begin, end in spans.tolist():
        is_cut[begin:end] = True
    kept = bytes(byte for byte, cut in zip(data, is_cut.tolist(), strict=True) if not cut)
    assert left.split() == b" ".join(data[piece.begin : piece.end] for piece in pieces).split()
    assert b"".join(left.split()) == b"".join(kept.split())  # every word that is not cut, or what is left of it
    assert not any(is_cut[piece.begin : piece.end].any() for piece in pieces)
    left.decode()
    whole = merged(spans)
    assert np.all(whole[1:, 0] > whole[:-1, 1]) and (whole[:, 1] - whole[:, 0]).sum() == is_cut.sum()


@pytest.mark.parametrize(
    ("text", "passage", "found"),
    [
        ('He said "one two three". Then.\n', "one two three", '"one two three".'),
        ("(one two) x\n", "one two", "(one two)"),
        ("x-one two-y\n", "one two", "one two"),  # a mark between two words stays
        ("One two.\nThree.\n", "One two", "One two.\n"),  # whole lines take their newline along
        ("x one two", "one two", "one two"),
        ("x\n- one two;\ny\n", "one two", "one two;"),
    ],
)
def test_a_passage_takes_the_marks_beside_it_along(text: str, passage: str, found: str) -> None:
    data = text.encode()
    begin = data.index(passage.encode())
    end = begin + len(passage.encode())
    floor = len(data[:begin].rstrip(b' "(-\n'))
    roof = next((at for at in range(end, len(data)) if chr(data[at]).isalnum()), len(data))
    low, high = widened(data, begin, end, floor, roof)
    assert data[low:high].decode() == found


def test_a_cut_document_has_its_passages_beside_it(tmp_path: Path) -> None:
    text = "\u00e9 one EMAIL two\nmenu URL\nthree IP four\n"
    found = ("EMAIL", "URL", "IP")
    kind = pa.list_(pa.struct([("column", pa.string()), ("begin", pa.int64()), ("end", pa.int64())]))
    places = [
        [
            *({"column": "text", "begin": text.index(word), "end": text.index(word) + len(word)} for word in found),
            {"column": "url", "begin": 99, "end": 100},
        ],
        None,
    ]
    documents = numbered(pa.table({
        "text": [text, "other\n"], "text_bytes": [len(text.encode()), 6], "pii_spans": pa.array(places, kind),
        "x": [1, 2],
    }))  # fmt: skip
    (stretch,) = stored(documents, tmp_path)
    with CutWriter(tmp_path / "lines") as writer:
        begin = text.encode().index(b"menu")
        writer.write([(0, spans_of((begin, begin + 9)))])
    with CutWriter(tmp_path / "words") as writer:
        begin = text.encode().index(b"three")
        writer.write([(0, spans_of((begin, begin + 5)))])
    cut = (
        CutStretch.of(stretch)
        .after(CutFile("lines", tmp_path / "lines", 0))
        .after(CutFile("words", tmp_path / "words", 0))
    )
    tagged = cut.tagged()
    first, other = with_passages(without_cuts(tagged, cut), tagged, cut).to_pylist()
    assert first["text"] == "\u00e9 one EMAIL two\n\nIP four\n" and first["text_bytes"] == len(first["text"].encode())
    *of_text, of_url = first["pii_spans"]
    assert [first["text"][span["begin"] : span["end"]] for span in of_text] == ["EMAIL", "IP"]
    assert of_url == {"column": "url", "begin": 99, "end": 100}
    assert [(own["step"], own["text"]) for own in first["cuts"]] == [("lines", "menu URL\n"), ("words", "three")]
    assert all(text[own["begin"] : own["end"]] == own["text"] for own in first["cuts"])
    assert (other["text"], other["cuts"], other["x"]) == ("other\n", None, 2)
    assert cut.read(["text_bytes"])["text_bytes"].to_pylist() == [first["text_bytes"], 6]
    sizes = cut_sizes(cut, tagged)
    flow, counts = tagged, dict[str, Any]()
    for step in ("lines", "words"):
        flow, counts[step] = sizes[step].applied(flow)
    assert counts["lines"] == {"passages_cut": 1, "documents_cut": 1, "bytes_cut": 9}
    assert flow["text_bytes"].to_pylist() == [first["text_bytes"], 6]
