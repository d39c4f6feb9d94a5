"""Contents to documents: bytes to characters, mark-up to text, and whose licence and which time it has."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lifecycle.data.config import SourceConfig
from lifecycle.data.reading.decoding import decode, require_text
from lifecycle.data.reading.html_text import parse_html
from lifecycle.data.reading.latex import parse_latex
from lifecycle.data.reading.mail import parse_mail
from lifecycle.data.reading.man_pages import parse_man
from lifecycle.data.reading.markup import parse_markdown, parse_python_dict
from lifecycle.data.reading.pdf import parse_pdf
from lifecycle.data.reading.raw import SURROGATES, Content, RawDocument, UnreadableError, license_in
from lifecycle.data.reading.times import iso_time
from lifecycle.data.reading.trafilatura_text import parse_with_trafilatura

HEAD = 4096  # characters in which a licence is looked for
_LICENSE_ID = r"\(*[A-Za-z0-9][A-Za-z0-9.+:-]*\)*"
_SPDX = re.compile(rf"SPDX-License-Identifier:[ \t]*({_LICENSE_ID}(?:[ \t]+(?:AND|OR|WITH)[ \t]+{_LICENSE_ID})*)")

_PARSERS: dict[str, Callable[[str], tuple[str, dict[str, Any]]]] = {
    "markdown": parse_markdown, "man": parse_man, "latex": parse_latex,
}  # fmt: skip
_PAGES = {"own": parse_html, "trafilatura": parse_with_trafilatura}


def documents_of(content: Content, source: SourceConfig) -> Iterator[RawDocument]:
    """The documents in a content: one, or of a Python module those in its dicts. Raises `UnreadableError` for none."""
    if content.format == "mail":
        content = parse_mail(content)
    elif content.format == "pdf":
        content = parse_pdf(content)
    text = _characters(content)
    own = content.license or spdx_license(text)
    if content.format == "python_dict":
        entries = [(key, value) for key, value in parse_python_dict(text) if value.strip()]
        if not entries:
            raise UnreadableError("no_text", "no dict literal with strings is assigned in it")
        for key, value in entries:
            meta = {"key": key}
            entry = replace(content, path=f"{content.path}#{key}", format="text", meta=meta, begin=None, end=None)
            yield _document(value, entry, own or source.license, source)
        return
    if parse := _PAGES[source.html] if content.format == "html" else _PARSERS.get(content.format):
        text, meta = parse(text)
        content = replace(content, meta=content.meta | meta, time=content.time or iso_time(meta.get("date")))
        own = own or license_in(meta.get("license"))
    if not text.strip():
        raise UnreadableError("no_text", f"no text in the {content.format}")
    yield _document(text, content, own or source.license, source)


def spdx_license(text: str) -> str | None:
    """The SPDX licence expression in the head of a file (SPDX 2.3, annexes D and E), if there is one."""
    found = None if text.find("SPDX-", 0, HEAD) < 0 else _SPDX.search(text, 0, HEAD)
    return found[1] if found else None


def _characters(content: Content) -> str:
    if isinstance(content.data, str):
        return content.data
    require_text(content.data)
    return decode(content.data, content.format, content.path, content.charset)


def _document(text: str, content: Content, license: str, source: SourceConfig) -> RawDocument:
    text, num_surrogates = (text, 0) if text.isascii() else SURROGATES.subn("\ufffd", text)  # a JSON row can have them
    path, license = (SURROGATES.sub("\ufffd", name) for name in (content.path, license))
    return RawDocument(
        text, source.name, path, license, content.format, content.meta, num_surrogates, content.url, content.time,
        content.begin, content.end,
    )  # fmt: skip
