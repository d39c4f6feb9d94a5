"""Files of many documents in a run: all that is in them is a document or listed, however they are cut into parts."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_tables import data_config
from web_archives import answer, archive, record

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Silent
from lifecycle.data.reading.sources import list_files
from lifecycle.data.tagging.partitions import partitions_of
from lifecycle.data.tagging.tagging import read_reading, tag_documents
from tests.data.test_data_pipeline import essay, hashes

NUM = 40


def mailbox() -> bytes:
    mails = (f"From a@b.c  Thu Aug 22 12:36:23 2002\nSubject: mail {n}\n\n{essay(n, 9)}\n" for n in range(NUM))
    return "".join(mails).encode()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(NUM):
            file.writestr(f"docs/{number}.txt", essay(number, 9))
        file.writestr("docs/private/a.txt", "Left out by a setting.\n")
        file.writestr("../a.txt", "Leads out of it.\n")
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        for number in range(NUM):
            data = essay(number, 9).encode()
            info = tarfile.TarInfo(f"docs/{number}.txt")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with `NUM` documents in a file of each kind, and one of each that cannot be used."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": essay(number, 9), "url": f"https://example.org/{number}"} for number in range(NUM)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(f"{lines}{{broken\n".encode()))
    (folder / "rows.json").write_text(json.dumps([*rows, 5]))
    (folder / "rows.csv").write_text("text\n" + "".join(f'"{row["text"]}"\n' for row in rows) + "one,two\n")
    pq.write_table(pa.Table.from_pylist([*rows, {"text": ""}]), folder / "rows.parquet")
    (folder / "a.mbox").write_bytes(mailbox() + b"From a@b.c  Thu Aug 22 12:36:23 2002\nSubject: none\n\n\n")
    moved = record("response", answer(b"Moved", status="301 Moved"))
    pages = [record("response", answer(f"<p>{essay(number, 9)}".encode())) for number in range(NUM)]
    (folder / "a.warc.gz").write_bytes(archive([*pages, moved]))
    (folder / "a.zip").write_bytes(zipped())
    (folder / "a.tar.gz").write_bytes(tarred()[:-20])
    return folder


def tag(corpus: Path, name: str, **changes: Any) -> Path:
    out = corpus.parent / name
    out.mkdir()
    config = data_config(str(corpus), **{"workers": 1, "max_skipped": 0.5, **changes})
    tag_documents(config, corpus.parent / "partitions", out, Silent())
    return out


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("tagged-*")) for row in pq.read_table(path).to_pylist()]


SOURCE = {"name": "mine", "license": "CC0", "exclude": ["**/private"]}


def test_everything_is_a_document_or_listed(corpus: Path) -> None:
    out = tag(corpus, "out", sources=[SOURCE | {"path": str(corpus)}])
    files: dict[str, int] = {}
    for row in rows_of(out):
        name = row["path"].split("#")[0].split(":")[0]
        files[name] = files.get(name, 0) + 1
    assert files == {path.name: NUM for path in corpus.iterdir()} | {"a.tar.gz": files["a.tar.gz"]}
    assert NUM - 2 <= files["a.tar.gz"] <= NUM
    lost = {entry.path.split("#")[0].split(":")[0]: entry.reason for entry in read_reading(out).skipped}
    assert lost == {
        "a.mbox": "no_text", "a.tar.gz": "broken_archive", "a.warc.gz": "status", "a.zip": "unsafe_path",
        "rows.csv": "broken_row", "rows.json": "broken_row", "rows.jsonl.gz": "broken_row", "rows.parquet": "empty",
    }  # fmt: skip


def test_parts_of_large_files_make_the_documents_of_the_whole(corpus: Path) -> None:
    for path in corpus.iterdir():
        if path.name not in ("a.mbox", "a.warc.gz"):
            path.unlink()
    config = data_config(str(corpus), partition_bytes=1000)
    parts = [entry.part for partition in partitions_of(list_files(config), config) for entry in partition.files]
    assert len(parts) > 4 and None not in parts
    assert hashes(tag(corpus, "parts", partition_bytes=1000)) == hashes(tag(corpus, "whole"))


def test_documents_that_move_in_their_file_are_read_again(tmp_path: Path) -> None:
    """Their bytes are the same, the places that they are named by are not."""
    path = tmp_path / "a.mbox"
    keys = []
    for first in ("short", "a little longer"):
        mails = [f"Subject: {first}\n\n{'x' * 900}\n", *(f"Subject: {n}\n\n{'y' * 900}\n" for n in range(29))]
        path.write_text("".join(f"From a@b.c  Thu Aug 22 12:36:23 2002\n{mail}\n" for mail in mails))
        config = data_config(str(path), partition_bytes=1000)
        keys.append({partition.key for partition in partitions_of(list_files(config), config)})
    assert len(keys[0]) > 3 and not keys[0] & keys[1]


def test_what_is_left_out_of_an_archive_is_part_of_its_key(corpus: Path) -> None:
    def keys(path: str, exclude: list[str]) -> list[str]:
        config = data_config(".", sources=[SOURCE | {"path": str(corpus / path), "exclude": exclude}])
        return [partition.key for partition in partitions_of(list_files(config), config)]

    assert keys("a.zip", ["a"]) != keys("a.zip", ["b"])
    assert keys("rows.csv", ["a"]) == keys("rows.csv", ["b"])


def test_a_source_that_is_empty_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'mine': no file in .* matches include"):
        tag(tmp_path, "none", sources=[SOURCE | {"path": str(tmp_path), "include": ["*.txt"]}])
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        pass
    out = tag(tmp_path, "out", sources=[SOURCE | {"path": str(tmp_path / "a.zip")}])
    assert [entry.reason for entry in read_reading(out).skipped] == ["empty"] and not rows_of(out)
