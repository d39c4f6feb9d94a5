"""Selected documents read in parts: all of them once, in order, few at a time; and texts only where they are asked."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from selected_folders import document, write_folder

from lifecycle.core.artifact import ArtifactError
from lifecycle.data.inspecting import selected
from lifecycle.data.inspecting.fate import find_documents
from lifecycle.data.inspecting.selected import (
    column_ranges,
    id_numbers,
    num_documents,
    read_parts,
    read_rows,
    read_where,
)
from lifecycle.data.web_names import address_hash

ROWS = [
    *(document(f"kept {number}", share=number / 10 or None) for number in range(13)),
    *(document(f"removed {number}", ("quality", "short", "")) for number in range(3)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("artifact") / "documents", ROWS)


def test_parts_are_all_documents_in_order_with_their_numbers(folder: Path) -> None:
    parts = list(read_parts(folder, ("text",)))
    assert [text for part in parts for text in part.rows["text"].to_pylist()] == [row["text"] for row in ROWS]
    assert [part.first for part in parts if part.split == "kept"] == [0, 2, 4, 5, 7, 9, 10, 12]
    assert sum(part.rows.num_rows for part in parts) == num_documents(folder) == 16
    assert {part.rows.schema.names[0] for part in read_parts(folder, ("word_count",))} == {"word_count"}


def test_documents_are_found_by_their_numbers(folder: Path) -> None:
    found = dict(read_rows(folder, "kept", [11, 0, 4, 11], ("text", "id")))
    assert [*found] == [0, 4, 11] and found[4] == {"text": "kept 4", "id": ROWS[4]["id"]}
    assert not dict(read_rows(folder, "heldout", [], ("text",)))


def test_only_row_groups_with_a_chosen_document_are_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    group_read = selected._RowGroup.read

    def counted(group: selected._RowGroup, columns: list[str]) -> object:
        read.extend([group.first] if "text" in columns else [])
        return group_read(group, columns)

    monkeypatch.setattr(selected._RowGroup, "read", counted)

    def is_ninth(rows: pa.RecordBatch, first: int) -> np.ndarray:
        del first
        return np.array([path == "kept 9.txt" for path in rows["path"].to_pylist()])

    assert list(read_where(folder, "kept", ("path",), is_ninth, ("text",))) == [{"text": "kept 9"}]
    assert read == [9]


def test_long_documents_come_one_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selected, "READ_BYTES", 1)
    assert {part.rows.num_rows for part in read_parts(folder, ("text",))} == {1}


def test_ranges_come_from_all_files_and_leave_out_what_is_null(folder: Path) -> None:
    assert column_ranges(folder, ("word_count", "share")) == {"word_count": (2, 2), "share": (0.1, 1.2)}
    empty = column_ranges(write_folder(folder.parent / "none", [document("a")]), ("share",))
    assert not empty


def test_ids_are_two_numbers(folder: Path) -> None:
    part = next(read_parts(folder, ("id",)))
    high, low = id_numbers(part.rows)[1].tolist()
    assert f"{high:016x}{low:016x}" == ROWS[1]["id"]


def test_a_damaged_file_and_one_of_another_version_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "documents", ROWS)
    with pytest.raises(ArtifactError, match=r"kept-00000.parquet: no column begin: another version made it"):
        list(read_parts(folder, ("text", "begin")))
    selected.require_columns(folder, ("text", "id"))
    with pytest.raises(ArtifactError, match="no column bytes_cut: another version made it; delete its folder"):
        selected.require_columns(folder, ("text", "bytes_cut"))
    file = folder / "kept-00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + bytes(1000) + whole[1004:])
    with pytest.raises(ArtifactError, match=r"kept-00001.parquet: .*damaged; delete its folder"):
        list(read_parts(folder, ("text", "id")))
    file.write_bytes(whole[:-100])
    with pytest.raises(ArtifactError, match=r"kept-00001.parquet: .*damaged; delete its folder"):
        list(read_parts(folder, ("id",)))


def test_a_folder_without_documents_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no kept-"):
        list(read_parts(tmp_path, ("text",)))


def test_a_document_is_found_by_its_path_as_it_was_and_as_it_is_masked(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "documents", [document("a", path="mail/EMAIL_ADDRESS.txt:3"), document("b", path="b")]
    )
    for name in ("mail/jane@company.org.txt:3", "s:mail/jane@company.org.txt:3", "s:mail/EMAIL_ADDRESS.txt:3"):
        assert [fate.row["text"] for fate in find_documents(folder, name)] == ["a"]
    assert not find_documents(folder, "other:mail/jane@company.org.txt:3")


def test_a_document_is_found_by_what_a_list_of_documents_to_forget_has(tmp_path: Path) -> None:
    content, address = bytes(range(15, -1, -1)), "https://www.company.org/users/jane@company.org/"
    rows = [document("a", content=content, address=address_hash(address)), document("b"), document("c")]
    folder = write_folder(tmp_path / "documents", rows)
    for name in (rows[0]["id"], content.hex(), address, "http://company.org/users/jane@company.org"):
        assert [fate.row["text"] for fate in find_documents(folder, name)] == ["a"]
    for name in ("https://company.org/users/john@company.org", "https://company.org", content.hex()[:31]):
        assert not find_documents(folder, name)
