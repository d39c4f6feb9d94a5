"""Compressed files: whole ones, broken ones of which the rest is read, and bombs."""

import bz2
import gzip
import io
import lzma
import random
from pathlib import Path

import pyarrow as pa
import pytest
from extraction import documents, extract, reasons, refused
from hypothesis import example, given
from hypothesis import strategies as st

from lifecycle.data.reading.raw import UnreadableError
from lifecycle.data.reading.streams import BrokenStreamError, Budget, decompressed, inner_name, lines, read_whole


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


COMPRESS = {"gzip": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zstd": zstd}


def read(data: bytes, compression: str, limit: int = 1 << 20) -> tuple[bytes, list[UnreadableError]]:
    """What a compressed file holds, without the lines that are broken, and its faults."""
    file = decompressed(io.BytesIO(data), compression, Budget(len(data), 1_000_000))
    found = [line for _, _, line in lines(file, limit)]
    good = b"".join(line for line in found if isinstance(line, bytes))
    return good, [line for line in found if isinstance(line, UnreadableError)]


def text_of(seed: int, num_lines: int = 400) -> bytes:
    chance = random.Random(seed)
    return b"".join(chance.randbytes(chance.randrange(90)).hex().encode() + b"\n" for _ in range(num_lines))


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_file_of_several_members_is_read_as_one(compression: str) -> None:
    parts = [text_of(seed) for seed in range(4)]
    whole = b"".join(map(COMPRESS[compression], parts))
    assert read(whole, compression) == (b"".join(parts), [])


@pytest.mark.parametrize("compression", COMPRESS)
def test_what_comes_before_the_end_of_a_cut_file_is_kept(compression: str) -> None:
    text = b"".join(map(text_of, range(40)))
    good, faults = read(COMPRESS[compression](text)[:-20_000], compression)
    assert len(faults) == 1 and faults[0].reason == "broken_compression"
    assert text.startswith(good) and len(good) > len(text) / 2 and good.endswith(b"\n")


@given(st.integers(0, 2), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@example(1, 0.990234375, 2)  # the end of its last block: what follows is read as if it were more of it
def test_of_a_broken_gzip_file_all_other_members_are_read(member: int, place: float, change: int) -> None:
    """And of the broken one nothing that is not there, before its fault is told."""
    parts = [text_of(seed, 60) for seed in range(3)]
    members = [bytearray(gzip.compress(part, mtime=0)) for part in parts]
    at = int(place * len(members[member]))
    members[member][at] ^= change
    good, faults = read(b"".join(members), "gzip")
    if faults:
        others = b"".join(part for number, part in enumerate(parts) if number != member)
        rest = good.removesuffix(b"".join(parts[member + 1 :]))
        assert rest != good or member == 2
        assert rest.startswith(b"".join(parts[:member])) and len(good) >= len(others)
        assert all(fault.reason == "broken_compression" for fault in faults)
    else:  # a byte of the header that nobody checks, such as its time
        assert good == b"".join(parts)


def test_a_fault_costs_one_line() -> None:
    text = b"".join(map(text_of, range(20)))
    data = bytearray(gzip.compress(text, mtime=0))
    data[-6] ^= 1  # of the checksum
    good, faults = read(bytes(data), "gzip")
    assert good == text[: text[:-1].rfind(b"\n") + 1] and "incorrect data check" in str(faults[0])


def test_zeros_behind_the_last_member_are_no_fault_and_other_bytes_are() -> None:
    data = gzip.compress(b"text\n")
    assert read(data + bytes(5000), "gzip") == (b"text\n", [])
    good, faults = read(data + b"rubbish", "gzip")
    assert good == b"text\n" and len(faults) == 1


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_bomb_ends_at_the_limit(compression: str) -> None:
    bomb = COMPRESS[compression](bytes(40_000_000))
    file = decompressed(io.BytesIO(bomb), compression, Budget(len(bomb), 100_000))
    size = 0
    with pytest.raises(BrokenStreamError, match="what a bomb does") as caught:
        while data := file.read(1 << 16):
            size += len(data)
    assert caught.value.reason == "too_compressed" and size <= max(300 * len(bomb), 2_000_000)
    assert not file.read()


def test_no_more_is_read_of_a_document_than_it_may_have() -> None:
    file = decompressed(io.BytesIO(gzip.compress(bytes(40_000_000))), "gzip", Budget(10**9, 10**9))
    with pytest.raises(UnreadableError, match="more than 1000 bytes"):
        read_whole(file, 1000)


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("a/rows.jsonl.gz", ("a/rows.jsonl", "gzip")),
        ("x.TAR.ZST", ("x.TAR", "zstd")),
        ("x.tgz", ("x.tar", "gzip")),
        ("ls.1.gz", ("ls.1", "gzip")),
        ("a.gz/b.txt", ("a.gz/b.txt", None)),
        ("gz", ("gz", None)),
    ],
)
def test_names_of_compressed_files(name: str, inner: tuple[str, str | None]) -> None:
    assert inner_name(name) == inner


def test_a_single_compressed_file_is_what_its_inner_name_says(tmp_path: Path) -> None:
    for name, format in (
        ("README.gz", "text"),
        ("changelog.Debian.gz", "text"),
        ("a.py.gz", "code"),
        ("a.rst.xz", "rst"),
    ):
        compress = gzip.compress if name.endswith("gz") else lzma.compress
        (found,) = documents(extract(tmp_path / name, compress(b"x = 1\n")))
        assert (found.text, found.format, found.path, found.begin, found.end) == ("x = 1\n", format, name, 0, 6)
    broken = extract(tmp_path / "README.gz", gzip.compress(text_of(1))[:-100])
    assert reasons(broken) == [("README.gz", "broken_compression")] and not documents(broken)
    bomb = refused(extract(tmp_path / "README.gz", gzip.compress(bytes(10_000_000))))
    assert [entry.reason for entry in bomb] == ["too_large"]
