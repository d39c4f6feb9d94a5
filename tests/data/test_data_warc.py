"""WARC files: which records become documents, with what is known of them; broken ones; parts of large files."""

import gzip
import io
import random
from itertools import accumulate
from pathlib import Path

import pytest
from extraction import Found, document, documents, extract, reasons, refused, skipped
from hypothesis import given
from hypothesis import strategies as st
from web_archives import answer, archive, page, record

from lifecycle.data.reading.row_parts import RowPart, row_parts
from lifecycle.data.reading.streams import Budget
from lifecycle.data.reading.warc import warc_contents

HEAD = record("warcinfo", b"software: a\r\n", "application/warc-fields")
REQUEST = record("request", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request")


def read(tmp_path: Path, records: list[bytes], name: str = "a.warc.gz", **settings: int) -> Found:
    content = archive(records) if name.endswith(".gz") else b"".join(records)
    return extract(tmp_path / name, content, **settings)


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_pages_with_address_time_and_bytes(tmp_path: Path, name: str) -> None:
    records = [HEAD, REQUEST, page(1), record("metadata", b"a: b", "application/warc-fields"), REQUEST, page(2)]
    found = documents(read(tmp_path, records, name))
    assert [(entry.url, entry.time, entry.format) for entry in found] == [
        (f"https://example.org/{number}", "2024-05-18T01:58:10Z", "html") for number in (1, 2)
    ]
    assert found[0].text.startswith("Page 1. word word") and found[0].meta == {"title": "Page 1"}
    data = (tmp_path / name).read_bytes()
    for entry, whole in zip(found, (records[2], records[5]), strict=True):
        assert entry.begin is not None and entry.path == f"{name}:{entry.begin}"
        own = data[entry.begin : entry.end]
        assert (gzip.decompress(own) if name.endswith("gz") else own + b"\r\n\r\n") == whole


def test_texts_of_common_crawl(tmp_path: Path) -> None:
    wet = record("conversion", "Título: año\n".encode(), "text/plain", WARC_Target_URI="https://example.org/es")
    found = document(read(tmp_path, [HEAD, wet], "a.warc.wet.gz"))
    assert (found.text, found.url, found.format) == ("Título: año\n", "https://example.org/es", "text")


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (answer("<p>Привет".encode("cp1251"), "text/html; charset=windows-1251"), "Привет"),
        (answer("<meta charset=koi8-r><p>Привет".encode("koi8-r")), "Привет"),
        (answer("<p>Привет".encode(), 'text/html; charset="iso-8859-1"'), "Привет"),  # declared wrongly
        (answer(b"<p>caf\xe9", "text/html; charset=none"), "caf\u00e9"),
        (answer(b"plain", "text/plain"), "plain"),
        (answer(b"<p>a", "Application/XHTML+xml"), "a"),
        (answer(gzip.compress(b"<p>a"), Content_Encoding="gzip"), "a"),
        (answer(b"<p>a", Content_Encoding="gzip"), "a"),  # kept decoded
        (answer(b"4\r\n<p>a\r\n0\r\n\r\n", Transfer_Encoding="chunked"), "a"),
        (answer(b"<p>a", Transfer_Encoding="chunked"), "a"),
    ],
)
def test_answers_as_servers_send_them(tmp_path: Path, block: bytes, text: str) -> None:
    assert document(read(tmp_path, [record("response", block)])).text == text


@pytest.mark.parametrize(
    ("one", "reason", "detail"),
    [
        (record("response", answer(b"<p>Moved", status="301 Moved")), "status", "HTTP status 301"),
        (record("response", answer(b"\x89PNG", "image/png")), "no_text", "content of type 'image/png'"),
        (record("response", answer(b"<p>a", None)), "no_text", "content of type ''"),
        (record("response", b"192.0.2.1", "text/dns"), "no_text", "no HTTP answer"),
        (record("response", answer(b"<p>" + b"a" * 200_000)), "too_large", "a record of 200"),
        (
            record("response", answer(gzip.compress(b"<p>a" * 90_000), Content_Encoding="gzip")),
            "too_large",
            "more than",
        ),
        (record("response", answer(b"<p>a\0b")), "binary", "NUL"),
        (record("response", b"nothing"), "no_text", "no HTTP answer"),
        (record("new", b"a", "text/plain"), "broken_record", "of unknown type 'new'"),
        (b"WARC/1.0\r\nWARC-Type: response\r\n\r\n", "broken_record", "no Content-Length"),
        (b"nothing\r\n\r\n", "broken_record", "no WARC header"),
    ],
)
@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_what_is_not_used_is_told_and_the_rest_is_read(
    tmp_path: Path, name: str, one: bytes, reason: str, detail: str
) -> None:
    found = read(tmp_path, [HEAD, page(1), one, page(2)], name)
    assert [entry.meta["title"] for entry in documents(found)] == ["Page 1", "Page 2"]
    (only,) = refused(found)
    sizes = [len(gzip.compress(part, mtime=0)) if name.endswith("gz") else len(part) for part in (HEAD, page(1))]
    assert (only.reason, only.path) == (reason, f"{name}:{sum(sizes)}") and detail in only.detail


@pytest.mark.parametrize("length", [5, 100_000])
@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_a_wrong_length_costs_one_record(tmp_path: Path, name: str, length: int) -> None:
    wrong = record("response", answer(b"<p>wrong"), Content_Length=str(length))
    found = read(tmp_path, [page(1), wrong, page(2), page(3)], name)
    titles = [entry.meta["title"] for entry in documents(found)]
    assert titles == (["Page 1"] if length > 5 and name == "a.warc" else ["Page 1", "Page 2", "Page 3"])
    assert [reason for _, reason in reasons(found)] == ["truncated" if length > 5 else "broken_record"]


def test_of_a_broken_gzip_file_every_other_record_is_read(tmp_path: Path) -> None:
    members = [bytearray(archive([page(number, 3000)])) for number in range(9)]
    for number in (0, 4, 5):
        members[number][-20] ^= 255
    offsets = [0, *accumulate(map(len, members))]
    found = extract(tmp_path / "a.warc.gz", b"".join(members))
    assert [entry.meta["title"] for entry in documents(found)] == [f"Page {n}" for n in (1, 2, 3, 6, 7, 8)]
    assert [entry.path for entry in refused(found)] == [f"a.warc.gz:{offsets[n]}" for n in (0, 4, 5)]
    assert [(entry.begin, entry.end) for entry in documents(found)] == [
        (offsets[n], offsets[n + 1]) for n in (1, 2, 3, 6, 7, 8)
    ]


@pytest.mark.parametrize(("name", "reason"), [("a.warc.gz", "broken_compression"), ("a.warc", "truncated")])
def test_a_cut_file_gives_all_but_its_last_record(tmp_path: Path, name: str, reason: str) -> None:
    whole = archive(list(map(page, range(4)))) if name.endswith("gz") else b"".join(map(page, range(4)))
    found = extract(tmp_path / name, whole[:-50])
    assert len(documents(found)) == 3 and [reason for _, reason in reasons(found)] == [reason]


@pytest.mark.parametrize("size", [0, 700])
def test_a_file_that_is_compressed_without_regard_to_records(tmp_path: Path, size: int) -> None:
    """As a whole, or in blocks, as `pigz -i` and `bgzip` do."""
    plain = b"".join([HEAD, *map(page, range(4))])
    blocks = [plain[at : at + size] for at in range(0, len(plain), size)] if size else [plain]
    found = documents(extract(tmp_path / "a.warc.gz", archive(blocks)))
    assert [entry.meta["title"] for entry in found] == [f"Page {number}" for number in range(4)]
    assert len({entry.path for entry in found}) == 4 and {entry.begin for entry in found} == {None}


def test_without_a_page_there_is_no_document(tmp_path: Path) -> None:
    assert skipped(read(tmp_path, [HEAD, REQUEST])).reason == "empty"
    assert skipped(extract(tmp_path / "b.warc", b"")).reason == "empty"
    cut = record("response", answer(b"<p>begins"), WARC_Truncated="length")
    assert document(read(tmp_path, [cut])).meta == {"truncated": "length"}


@given(st.lists(st.integers(0, 4000), min_size=1, max_size=40), st.integers(300, 9000), st.integers(0, 9))
def test_parts_have_the_records_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], size: int, seed: int
) -> None:
    chance = random.Random(seed)
    path = tmp_path_factory.mktemp("warc") / "a.warc.gz"
    records = [page(number, length) for number, length in enumerate(sizes)]
    records += [record("response", answer(chance.randbytes(length * 30), "image/png")) for length in sizes[:9]]
    chance.shuffle(records)
    path.write_bytes(archive(records))

    def read_part(part: RowPart | None) -> list[tuple[object, ...]]:
        with path.open("rb", 1 << 18) as file:
            assert isinstance(file, io.BufferedReader)
            found = warc_contents(file, "a", "gzip", Budget(10**6, 10**6), 10**6, part)
            return [(item.path, getattr(item, "begin", None), getattr(item, "end", None)) for item in found]

    parts = row_parts(path, "warc", size)
    assert [item for part in parts or [None] for item in read_part(part)] == read_part(None)


def test_an_archive_in_an_archive_is_not_cut(tmp_path: Path) -> None:
    """It is kept as it is, since what is compressed cannot be compressed again: its members look like the others'."""
    chance = random.Random(0)
    noise = [record("response", answer(chance.randbytes(20_000), "image/png")) for _ in range(40)]
    inner = archive(noise)
    outer = [page(1), record("response", answer(inner, "application/warc")), page(2), *map(page, range(3, 900))]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(archive(outer))
    own = set(accumulate(len(archive([one])) for one in outer))
    parts = row_parts(path, "warc", 50_000)
    assert path.read_bytes().count(b"\x1f\x8b\x08") > len(outer) + 30
    assert len(parts) > 2 and {part.end for part in parts} <= own


def test_a_broken_member_behind_a_cut_record_costs_itself(tmp_path: Path) -> None:
    cut, broken = page(1)[:-50], bytearray(gzip.compress(page(2), mtime=0))
    broken[-6] ^= 1  # its checksum
    data = b"".join([archive([HEAD, cut]), bytes(broken), archive([page(3)])])
    found = extract(tmp_path / "a.warc.gz", data)
    assert [entry.url for entry in documents(found)] == ["https://example.org/3"]
    assert [reason for _, reason in reasons(found)] == ["truncated", "broken_compression"]
