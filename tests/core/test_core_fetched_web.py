"""Files on the web: copied whole, and again only if the server has another one."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.core.fetched import file_place, local_file
from lifecycle.core.store import StoreError


class Served(BaseHTTPRequestHandler):
    """Answers with one file, whatever is asked; it may end in the middle."""

    content, is_cut = b"first", False
    answers: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        tag = f'"{len(self.content)}"'
        status = 404 if "gone" in self.path else 304 if self.headers.get("If-None-Match") == tag else 200
        self.answers.append(status)
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(self.content) if status == 200 else 0))
        self.end_headers()
        if status == 200:
            self.wfile.write(self.content[: 2 if self.is_cut else None])

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Served, "answers", [])
    with HTTPServer(("127.0.0.1", 0), Served) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_is_copied_again_only_if_it_has_changed(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{web}/a%20b/rows é.jsonl?download=true"
    assert file_place(url) == url
    assert [local_file(url).read_bytes() for _ in range(2)] == [b"first"] * 2
    assert Served.answers == [200, 304] and local_file(url).suffix == ".jsonl"
    monkeypatch.setattr(Served, "content", b"second")
    monkeypatch.setattr(Served, "is_cut", True)
    with pytest.raises(StoreError, match=rf"^{web}/.* é.*no answer that can be used \(2 bytes of 6\)"):
        local_file(url)
    monkeypatch.setattr(Served, "is_cut", False)
    assert local_file(url).read_bytes() == b"second"
    with pytest.raises(StoreError, match="gone: 404 Not Found; correct the address"):
        local_file(f"{web}/gone")


def test_a_place_is_a_path_or_an_address(web: str) -> None:
    assert [file_place(place) for place in ("./rows.jsonl", "s3://bucket/a b/é.jsonl")] == [
        "rows.jsonl", "s3://bucket/a b/é.jsonl",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no storage of this kind"):
        file_place("ftp://host/rows.jsonl")
    with pytest.raises(StoreError, match="no answer that can be used"):
        local_file("http://127.0.0.1:9/rows.jsonl")
