"""A web server on this machine with the files that a test gives it."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.web_server import QuietHandler, answering


class Website:
    """Its address, its files by their paths below it, and the statuses of its answers. It may end an answer in the
    middle, or refuse some, or say when a file was made (any text) instead of its tag."""

    def __init__(self, url: str) -> None:
        self.url, self.is_cut, self.has_tags = url, False, True
        self.files: dict[str, bytes] = {}
        self.refused: list[int] = []  # the statuses of its next answers
        self.answers: list[tuple[int, str]] = []

    def add(self, folder: Path, below: str) -> str:
        """Serves a folder's files; returns its address."""
        self.files |= {f"{below}/{file.name}": file.read_bytes() for file in folder.iterdir()}
        return f"{self.url}/{below}"


class Handler(QuietHandler):
    """Answers with a file and its ETag, or that it has not changed."""

    protocol_version = "HTTP/1.1"
    website: Website

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).removeprefix("/")
        content = self.website.files.get(name)
        tag = f'"{sha256(content or b"").hexdigest()[:8]}"'
        status = 404 if content is None else 304 if self._is_known(tag) else 200
        if self.website.refused:
            status = self.website.refused.pop(0)
        self.website.answers.append((status, name))
        body = content if content is not None and status == 200 else b""
        self.send_response(status)
        self.send_header("ETag" if self.website.has_tags else "Last-Modified", tag)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(body[: 2 if self.website.is_cut else None])
        self.close_connection = self.website.is_cut

    def _is_known(self, tag: str) -> bool:
        return tag == self.headers.get("If-None-Match" if self.website.has_tags else "If-Modified-Since")


@pytest.fixture
def website(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Website]:
    """A server without files, and an empty cache on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("lifecycle.core.web.PAUSES_S", (0.0, 0.0))
    website = Website("")
    with answering(type("WebsiteHandler", (Handler,), {"website": website})) as url:
        website.url = url
        yield website
