"""Documents written in pieces: what is in which piece, and the files that come of them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.document_writer import (
    FILE_BYTES,
    LEAST_PIECE,
    PIECES,
    DocumentWriter,
    cut_evenly,
    gather_files,
    piece_bytes,
)
from lifecycle.data.documents import document_files

SIZES = st.lists(st.integers(0, 2 * FILE_BYTES) | st.integers(0, LEAST_PIECE), max_size=60)


@given(SIZES)
def test_pieces_are_all_items_in_order_and_none_is_much_larger_than_asked(sizes: list[int]) -> None:
    pieces = cut_evenly(list(enumerate(sizes)), sizes)
    assert [item for piece in pieces for item in piece] == list(enumerate(sizes))
    most = piece_bytes(sum(sizes))
    assert all(sum(size for _, size in piece[:-1]) < most for piece in pieces)
    assert LEAST_PIECE <= most <= FILE_BYTES and len(pieces) <= max(PIECES, sum(sizes) / FILE_BYTES) + 1


def write(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    with DocumentWriter(folder, "kept", pa.schema([("text", pa.string())])) as writer:
        writer.write(pa.table({"text": pa.array(texts, pa.string())}))
    return folder


def texts(folder: Path) -> list[list[str]]:
    return [pq.read_table(path)["text"].to_pylist() for path in document_files(folder, "kept")]


def test_gathered_files_are_those_with_documents_in_the_order_of_the_pieces(tmp_path: Path) -> None:
    pieces = [write(tmp_path / f"{number}", own) for number, own in enumerate((["a"], [], ["b", "c"]))]
    out = write(tmp_path / "out", ["of a killed run"])
    (out / "kept-00007.parquet").write_bytes(b"")
    gather_files(pieces, "kept", out)
    assert texts(out) == [["a"], ["b", "c"]]
    gather_files([write(tmp_path / "none", []), write(tmp_path / "nothing", [])], "kept", out)
    assert texts(out) == [[]]


def test_the_file_behind_the_hundred_thousandth_is_the_last(tmp_path: Path) -> None:
    for number in (100_000, 99_999):
        write(tmp_path / "own", [f"{number}"])
        (tmp_path / "own" / "kept-00000.parquet").rename(tmp_path / f"kept-{number:05d}.parquet")
        (tmp_path / "own").rmdir()
    assert texts(tmp_path) == [["99999"], ["100000"]]
