"""Archives: their files as files of their own, whatever compresses them, and what no honest archive has."""

import bz2
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from extraction import document, documents, extract, extract_path, reasons, refused, skipped
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.reading import archives

FILES = {
    "./docs/a.txt": b"one\n",
    "docs/b.html": b"<title>T</title><p>two",
    "docs/rows.jsonl": b'{"text": "three"}\n{broken\n{"text": "four"}\n',
    "src/c.py.gz": gzip.compress(b"x = 5\n"),
    "src/.git/config": b"[core]\n",
    "src/image.png": b"\x89PNG\0",
}


def tar(files: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return out.getvalue()


def zipped(files: Mapping[Any, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tar", tar(FILES)),
        ("x.tar.gz", gzip.compress(tar(FILES))),
        ("x.tgz", gzip.compress(tar(FILES))),
        ("x.tar.zst", zstd(tar(FILES))),
        ("x.tar.xz", lzma.compress(tar(FILES))),
        ("x.tar.bz2", bz2.compress(tar(FILES))),
        ("x.zip", zipped(FILES)),
        ("x.zip", zipped(FILES, zipfile.ZIP_STORED)),
        ("x.gz", gzip.compress(tar(FILES))),  # as arXiv has them
    ],
)
def test_members_are_files_of_their_own(tmp_path: Path, name: str, content: bytes) -> None:
    found = extract(tmp_path / name, content)
    assert [(entry.path, entry.text, entry.format) for entry in documents(found)] == [
        (f"{name}#docs/a.txt", "one\n", "text"),
        (f"{name}#docs/b.html", "two", "html"),
        (f"{name}#docs/rows.jsonl:1", "three", "text"),
        (f"{name}#docs/rows.jsonl:3", "four", "text"),
        (f"{name}#src/c.py.gz", "x = 5\n", "code"),
    ]
    assert reasons(found) == [(f"{name}#docs/rows.jsonl:2", "broken_row"), (f"{name}#src/image.png", "unknown_format")]
    first = documents(found)[0]
    if "tar" in name and "zst" not in name and "tgz" not in name:
        plain = {"gz": gzip, "xz": lzma, "bz2": bz2}.get(name.rsplit(".", 1)[1])
        whole = plain.decompress(content) if plain else content
        assert whole[first.begin : first.end] == b"one\n"
    elif "zip" in name:
        assert (first.begin, first.end) == (None, None)
    packed = documents(found)[-1]
    assert (packed.begin, packed.end) == (None, None)


def test_a_large_member(tmp_path: Path) -> None:
    text = "line of it\n" * 200_000
    for name, content in (("x.tar", tar({"a.txt": text.encode()})), ("x.zip", zipped({"a.txt": text.encode()}))):
        assert document(extract(tmp_path / name, content, 5_000_000)).text == text


def test_what_a_source_excludes_is_not_read_in_archives(tmp_path: Path) -> None:
    found = extract(tmp_path / "x.zip", zipped(FILES), exclude=["docs", "**/*.png", "**/config"])
    assert [entry.path for entry in found] == ["x.zip#src/c.py.gz"]


def links() -> list[tarfile.TarInfo]:
    kinds = {"soft": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "disk": tarfile.BLKTYPE}
    infos = [tarfile.TarInfo(name) for name in kinds]
    for info in infos:
        info.type, info.linkname = kinds[info.name], "/etc/passwd"
    return infos


UNSAFE = ["/etc/a.txt", "../a.txt", "docs/../../a.txt", "..\\a.txt", "C:\\a.txt", "\\\\host\\a.txt"]


def test_members_that_lead_out_of_a_tar_are_refused(tmp_path: Path) -> None:
    content = tar(dict.fromkeys([*UNSAFE, "a..b/b..txt"], b"text"), *links())
    found = extract(tmp_path / "x.tar", content)
    assert [entry.path for entry in documents(found)] == ["x.tar#a..b/b..txt"]
    assert reasons(found) == [
        *((f"x.tar#{name}", "unsafe_path") for name in UNSAFE),
        ("x.tar#soft", "no_text"), ("x.tar#hard", "no_text"), ("x.tar#pipe", "device"), ("x.tar#disk", "device"),
    ]  # fmt: skip


def test_members_that_lead_out_of_a_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("soft")
    link.external_attr = 0o120777 << 16
    found = extract(tmp_path / "x.zip", zipped({**dict.fromkeys([*UNSAFE, "b.txt"], b"text"), link: b"/etc/passwd"}))
    assert [entry.path for entry in documents(found)] == ["x.zip#b.txt"]
    assert reasons(found) == [*((f"x.zip#{name}", "unsafe_path") for name in UNSAFE), ("x.zip#soft", "no_text")]
    assert refused(found)[-1].detail == "a link to another file" and not list(tmp_path.glob("**/*.txt"))


def test_bombs_are_refused(tmp_path: Path) -> None:
    nothing = bytes(60_000_000)
    files = {"a.txt": b"one", "bomb.txt": nothing, "rows.jsonl": nothing, "b.txt": b"two"}
    assert reasons(extract(tmp_path / "x.zip", zipped(files))) == [
        ("x.zip#bomb.txt", "too_compressed"), ("x.zip#rows.jsonl", "too_compressed"),
    ]  # fmt: skip
    inside = extract(
        tmp_path / "x.tar", tar({"a.txt": b"one", "rows.jsonl.gz": gzip.compress(nothing), "b.txt": b"two"})
    )
    assert [entry.text for entry in documents(inside)] == ["one", "two"]
    assert reasons(inside)[0] == ("x.tar#rows.jsonl.gz:1", "too_compressed")
    many = {f"{number}.txt": b"x" * 99_000 for number in range(100)}  # each within the limits, together not
    found = extract(tmp_path / "x.tar.xz", lzma.compress(tar(many)))
    assert 10 < len(documents(found)) < 30
    assert [reason for _, reason in reasons(found)] == ["too_compressed", "broken_archive"]


def test_a_zip_whose_sizes_lie_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped({"a.txt": bytes(10_000_000)}))
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # size in both headers
        struct.pack_into("<L", content, content.index(mark) + place, 1000)
    assert reasons(extract(tmp_path / "x.zip", bytes(content))) == [("x.zip#a.txt", "broken_compression")]


def test_members_that_cannot_be_read_cost_themselves(tmp_path: Path) -> None:
    files = {name: f"text of {name}".encode() * 50 for name in ("a.txt", "b.txt", "c.txt", "d.txt")}
    content = bytearray(zipped(files))
    broken = content.index(b"b.txt") + len("b.txt") + 5
    content[broken] ^= 255
    encrypted = content.rindex(b"c.txt") - 46
    content[encrypted + 8] |= 1
    found = extract(tmp_path / "x.zip", bytes(content))
    assert [entry.path for entry in documents(found)] == ["x.zip#a.txt", "x.zip#d.txt"]
    assert reasons(found) == [("x.zip#b.txt", "broken_compression"), ("x.zip#c.txt", "encrypted")]
    other = extract(tmp_path / "y.zip", zipped(files, zipfile.ZIP_LZMA))
    assert {reason for _, reason in reasons(other)} == {"unknown_format"} and len(other) == 4


@pytest.mark.parametrize("cut", [1024, 1500, 2048])
def test_a_cut_tar_gives_what_comes_before_and_tells(tmp_path: Path, cut: int) -> None:
    files = {"a.txt": b"one" * 400, "b.txt": b"two" * 400, "c.txt": b"three" * 400}
    whole = tar(files)[: 512 + 1536 + cut]  # in the header of b, in b, behind b
    found = extract(tmp_path / "x.tar", whole)
    assert documents(found)[0].text == "one" * 400 and len(documents(found)) == 1 + (cut == 2048)
    last = refused(found)[-1]
    assert (last.path, last.reason) == ("x.tar#", "broken_archive") and "behind member" in last.detail


def test_a_broken_header_ends_a_tar_aloud(tmp_path: Path) -> None:
    content = bytearray(tar({"a.txt": b"one", "b.txt": b"two", "c.txt": b"three"}))
    content[1024 + 100] ^= 255
    found = extract(tmp_path / "x.tar", bytes(content))
    assert [entry.text for entry in documents(found)] == ["one"] and reasons(found) == [("x.tar#", "broken_archive")]


def test_of_a_broken_compressed_tar_the_beginning_is_read(tmp_path: Path) -> None:
    chance = random.Random(0)
    files = {f"{number:03}.txt": chance.randbytes(900).hex().encode() for number in range(200)}
    found = extract(tmp_path / "x.tar.gz", gzip.compress(tar(files))[:-50_000])
    texts = [entry.text for entry in documents(found)]
    assert texts == [content.decode() for content in files.values()][: len(texts)] and len(texts) > 100
    assert reasons(found)[-1] == ("x.tar.gz#", "broken_archive")


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.tar", b"no archive" * 99), ("x.tar", b""), ("x.zip", b"no archive" * 99), ("x.zip", b"PK\x05\x06" + bytes(9))],
)
def test_files_that_are_no_archives(tmp_path: Path, name: str, content: bytes) -> None:
    assert skipped(extract(tmp_path / name, content)).reason == "broken_file"


def test_empty_archives(tmp_path: Path) -> None:
    assert skipped(extract(tmp_path / "x.tar", tar({}))).reason == "empty"
    assert skipped(extract(tmp_path / "x.zip", zipped({}))).reason == "empty"


def test_archives_in_archives(tmp_path: Path) -> None:
    """Two deep, as those of arXiv; the third is not opened."""
    inner = tar({"paper/a.txt": b"text"})
    third = zipped({"y.zip": zipped({"z.zip": zipped({"a.txt": b"text"}), "b.txt": b"two"})})
    (one,) = documents(extract(tmp_path / "x.tar", tar({"0001.gz": gzip.compress(inner)})))
    assert (one.path, one.text) == ("x.tar#0001.gz#paper/a.txt", "text")
    found = extract(tmp_path / "x.zip", third)
    assert [entry.path for entry in documents(found)] == ["x.zip#y.zip#b.txt"]
    assert reasons(found) == [("x.zip#y.zip#z.zip", "nested")]
    streamed = extract(tmp_path / "x.tar.gz", gzip.compress(tar({"y.zip": zipped({"a.txt": b"text"})})))
    assert [entry.path for entry in documents(streamed)] == ["x.tar.gz#y.zip#a.txt"]


def test_a_huge_header_or_directory_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 300_000_000
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as file:
        file.write(long.tobuf(tarfile.GNU_FORMAT))
        for _ in range(300):
            file.write(b"a" * 1_000_000)
    tracemalloc.start()
    assert "a header of 300000" in skipped(extract_path(tmp_path / "x.tar.gz", 10_000_000)).detail
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 100)
    assert skipped(extract(tmp_path / "x.zip", zipped(FILES))).reason == "too_large"


@given(st.binary(max_size=40), st.integers(0, 10**6), st.sampled_from(["x.tar", "x.zip", "x.tar.gz"]))
def test_no_damage_ends_the_reading(change: bytes, at: int, name: str) -> None:
    """Whatever is written over an archive: it gives documents and reasons, and no exception."""
    make = {"x.tar": tar, "x.zip": zipped, "x.tar.gz": lambda files: gzip.compress(tar(files), mtime=0)}[name]
    whole = bytearray(make({"a.txt": b"one" * 99, "b/c.jsonl": json.dumps({"text": "two"}).encode(), "d.py": b"x = 1"}))
    at %= len(whole)
    whole[at : at + len(change)] = change
    with tempfile.TemporaryDirectory() as folder:
        found = extract(Path(folder) / name, bytes(whole))
    assert found
