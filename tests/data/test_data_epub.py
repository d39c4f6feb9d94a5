"""Books: chapters in their order, what is known of a book, and books that are broken or locked."""

import io
import zipfile
from pathlib import Path

import pytest
from extraction import document, documents, extract, reasons, skipped

CONTAINER = """<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OPS/a.opf"/></rootfiles></container>"""
PACKAGE = """<?xml version="1.0"?>
<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">
<metadata><dc:title>The Book</dc:title><dc:creator>A. One</dc:creator><dc:creator>B. Two</dc:creator>
<dc:language>en</dc:language><dc:rights>Public domain</dc:rights><dc:date>1899-05</dc:date>
<dc:identifier>urn:uuid:1</dc:identifier><dc:source>https://example.org/book</dc:source></metadata>
<manifest>
<item id="two" href="text/two.xhtml" media-type="application/xhtml+xml"/>
<item id="one" href="text/one%201.xhtml" media-type="application/xhtml+xml"/>
<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>
<item id="cover" href="cover.xhtml" media-type="application/xhtml+xml"/>
<item id="gone" href="gone.xhtml" media-type="application/xhtml+xml"/>
<item id="image" href="a.png" media-type="image/png"/>
</manifest>
<spine><itemref idref="cover"/><itemref idref="nav"/><itemref idref="one"/><itemref idref="image"/>
<itemref idref="two"/>MORE</spine></package>"""
PAGES = {
    "OPS/nav.xhtml": "<nav>Contents</nav>",
    "OPS/cover.xhtml": "<body><img src='a.png'/></body>",
    "OPS/text/one 1.xhtml": "<html><body><h1>One</h1><p>First — text.</p></body></html>",
    "OPS/text/two.xhtml": "<html><head><title>T</title></head><body><p>Second.</p></body></html>",
    "OPS/a.png": "x",
}


def book(changes: dict[str, str | None] | None = None, more: str = "") -> bytes:
    files = {
        "META-INF/container.xml": CONTAINER,
        "OPS/a.opf": PACKAGE.replace("MORE", more),
        **PAGES,
        **(changes or {}),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(name, content)
    return out.getvalue()


def test_a_book_is_one_document(tmp_path: Path) -> None:
    found = document(extract(tmp_path / "a.epub", book()))
    assert (found.text, found.format) == ("One\n\nFirst — text.\n\nSecond.", "epub")
    assert (found.url, found.time, found.path) == ("https://example.org/book", "1899-05", "a.epub")
    assert found.meta == {"title": "The Book", "author": "A. One, B. Two", "language": "en", "rights": "Public domain"}


def test_what_cannot_be_read_of_a_book_is_told(tmp_path: Path) -> None:
    lock = '<encryption><CipherData><CipherReference URI="OPS/text/two.xhtml"/></CipherData></encryption>'
    found = extract(tmp_path / "a.epub", book({"META-INF/encryption.xml": lock}, '<itemref idref="gone"/>'))
    assert [entry.text for entry in documents(found)] == ["One\n\nFirst — text."]
    assert reasons(found) == [("a.epub#OPS/text/two.xhtml", "encrypted"), ("a.epub#OPS/gone.xhtml", "missing")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"META-INF/container.xml": None}, "missing"),
        ({"META-INF/container.xml": "<container/>"}, "broken_file"),
        ({"OPS/a.opf": "<package"}, "broken_file"),
        ({"OPS/a.opf": '<!DOCTYPE a [<!ENTITY b "c">]><package>&b;</package>'}, "broken_file"),
        (dict.fromkeys(("OPS/text/one 1.xhtml", "OPS/text/two.xhtml"), "<p>"), "no_text"),
        (dict.fromkeys(("OPS/text/one 1.xhtml", "OPS/text/two.xhtml"), f"<p>{'word ' * 15_000}"), "too_large"),
    ],
)
def test_books_that_cannot_be_read(tmp_path: Path, changes: dict[str, str | None], reason: str) -> None:
    assert skipped(extract(tmp_path / "a.epub", book(changes))).reason == reason


def test_a_book_in_an_archive(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("books/a.epub", book())
    assert document(extract(tmp_path / "x.zip", out.getvalue())).path == "x.zip#books/a.epub"
    assert skipped(extract(tmp_path / "b.epub", b"no book")).reason == "broken_file"
