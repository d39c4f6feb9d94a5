"""The main text of a web page by trafilatura, an extra, for corpora like those that others have made with it (FineWeb:
Penedo et al. 2024, arXiv:2406.17557, section 3.2). The own reader finds more of the text and less beside it, and is 30
times as fast (`benchmarks/data/pages.py`). A page that makes it crash, run on or use too much memory is lost alone.
"""

from pathlib import Path
from typing import Any

from resiliparse.parse.html import HTMLTree

from lifecycle.data.reading import trafilatura_process
from lifecycle.data.reading.raw import SURROGATES
from lifecycle.data.reading.reader_process import read_apart

PROCESS = Path(trafilatura_process.__file__)


def parse_with_trafilatura(html: str) -> tuple[str, dict[str, Any]]:
    """The text of a page without comments, and its title; no text where trafilatura finds none. Raises
    `UnreadableError` for a page that is too much for it."""
    page = SURROGATES.sub("\ufffd", html)  # lxml takes no surrogates, and no NUL
    text = read_apart(PROCESS, "web pages", page.replace("\0", "").encode())["text"]
    title = (HTMLTree.parse(page).title or "").strip()
    return text, {"title": title} if title else {}
