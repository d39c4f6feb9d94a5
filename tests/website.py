"""A web server on this machine with the files that a test gives it."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.web_server import QuietHandler, answering


class Website:
    """Its address, its files by their paths below it, and the statuses of its answers. It may end an answer in the
    middle."""

    def __init__(self, url: str) -> None:
        self.url, self.is_cut = url, False
        self.files: dict[str, bytes] = {}
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
        status = 404 if content is None else 304 if self.headers.get("If-None-Match") == tag else 200
        self.website.answers.append((status, name))
        body = content if content is not None and status == 200 else b""
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: 2 if self.website.is_cut else None])
        self.close_connection = self.website.is_cut


@pytest.fixture
def website(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Website]:
    """A server without files, and an empty cache on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    website = Website("")
    with answering(type("WebsiteHandler", (Handler,), {"website": website})) as url:
        website.url = url
        yield website
