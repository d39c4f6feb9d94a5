"""Books in EPUB: the text of all chapters in the order in which they are read, as one document.

EPUB 3.3 (W3C), sections 4.2 (container), 5 (package document); EPUB 2 has the same parts.
"""

import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import unquote
from xml.etree import ElementTree

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from lifecycle.data.reading.archives import open_member, open_zip
from lifecycle.data.reading.decoding import decode, require_text
from lifecycle.data.reading.raw import Content, Refused, UnreadableError
from lifecycle.data.reading.streams import Budget, read_whole
from lifecycle.data.reading.times import iso_time

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
FIELDS = {"title": "title", "creator": "author", "language": "language", "publisher": "publisher", "rights": "rights"}
_ENTITY = re.compile(rb"<!ENTITY", re.IGNORECASE)


def epub_contents(file: BinaryIO, path: str, budget: Budget, max_bytes: int) -> Iterator[Content | Refused]:
    """The book in a file, behind what of it cannot be read; raises `UnreadableError` if there is none."""
    book = _Book(open_zip(file), budget, max_bytes)
    package = book.xml(book.package)
    texts: list[str] = []
    for name in book.chapters(package):
        try:
            texts.append(book.chapter(name))
        except UnreadableError as error:
            if error.reason != "no_text":  # such as a cover
                yield Refused(f"{path}#{name}", error)
    text = "\n\n".join(texts)
    if len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise UnreadableError("too_large", f"a book of more than {max_bytes} bytes, data.max_document_bytes")
    if not text.strip():
        raise UnreadableError("no_text", "no text in the book")
    fields = _fields(package)
    links = [*fields.pop("source", []), *fields.pop("identifier", [])]
    times = filter(None, map(iso_time, fields.pop("date", [])))
    yield Content(
        path, "epub", text, {FIELDS[name]: ", ".join(values) for name, values in fields.items()},
        url=next((link for link in links if link.startswith(("http://", "https://"))), None), time=next(times, None),
    )  # fmt: skip


class _Book:
    """A zip archive with a book in it."""

    def __init__(self, archive: zipfile.ZipFile, budget: Budget, max_bytes: int) -> None:
        self._archive, self._budget, self._max_bytes = archive, budget, max_bytes
        self._encrypted = self._encrypted_names() if ENCRYPTION in archive.namelist() else set[str]()
        root = self.xml(CONTAINER).find(".//{*}rootfile")
        if root is None or not root.get("full-path"):
            raise UnreadableError("broken_file", f"{CONTAINER} names no package")
        self.package = root.get("full-path", "")

    def read(self, name: str) -> bytes:
        """A file of the book; raises `UnreadableError`."""
        try:
            info = self._archive.getinfo(name)
        except KeyError:
            raise UnreadableError("missing", f"no {name} in the book") from None
        return read_whole(open_member(self._archive, info, self._budget), self._max_bytes)

    def xml(self, name: str) -> ElementTree.Element:
        """A file of the book as a tree; raises `UnreadableError`."""
        data = self.read(name)
        if _ENTITY.search(data):
            raise UnreadableError("broken_file", f"{name} defines entities")
        try:
            return ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise UnreadableError("broken_file", f"{name}: {error}") from None

    def chapters(self, package: ElementTree.Element) -> Iterator[str]:
        """The names of the pages, in the order of the spine."""
        items = {item.get("id"): item for item in package.iterfind("{*}manifest/{*}item")}
        for reference in package.iterfind("{*}spine/{*}itemref"):
            item = items.get(reference.get("idref"))
            is_page = item is not None and item.get("media-type", PAGES[0]) in PAGES
            if item is not None and is_page and "nav" not in item.get("properties", "").split():
                yield self._name(item.get("href", ""))

    def chapter(self, name: str) -> str:
        """The text of a page; raises `UnreadableError` if it has none."""
        if name in self._encrypted:
            raise UnreadableError("encrypted", "an encrypted page")
        data = self.read(name)
        require_text(data)
        tree = HTMLTree.parse(decode(data, "epub", name))
        text = extract_plain_text(tree, preserve_formatting=True, alt_texts=False).strip()
        if not text:
            raise UnreadableError("no_text", "no text in the page")
        return text

    def _name(self, href: str) -> str:
        folder = posixpath.dirname(self.package)
        return posixpath.normpath(posixpath.join(folder, unquote(href.partition("#")[0])))

    def _encrypted_names(self) -> set[str]:
        return {unquote(item.get("URI", "")) for item in self.xml(ENCRYPTION).iterfind(".//{*}CipherReference")}


def _fields(package: ElementTree.Element) -> dict[str, list[str]]:
    """The values of Dublin Core's elements, by name."""
    found: dict[str, list[str]] = {}
    for name in (*FIELDS, "date", "source", "identifier"):
        values = ("".join(item.itertext()) for item in package.iterfind(f"{{*}}metadata/{{*}}{name}"))
        if known := [" ".join(value.split()) for value in values if value.strip()]:
            found[name] = known
    return found
