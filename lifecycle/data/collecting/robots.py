"""What a server's robots.txt allows (RFC 9309): read once, kept for the run.

A server without one (status 4xx) allows all; one that cannot say (5xx, no answer) allows nothing. The most specific
rule decides, of the group of our name, or else of `*`: protego, which Scrapy uses, applies them.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from protego import Protego

from lifecycle.data.collecting.requests import PRODUCT, Answer, FetchError

MAX_BYTES = 512_000  # of the file: what is behind is not looked at (RFC 9309, 2.5)
_ALL, _NOTHING = "User-agent: *\nAllow: /", "User-agent: *\nDisallow: /"


@dataclass(frozen=True)
class Rules:
    """The rules of a server; `why` says where they are from."""

    parsed: Protego
    why: str

    def allow(self, url: str) -> bool:
        """Whether an address may be asked for."""
        return self.parsed.can_fetch(url, PRODUCT)

    @property
    def delay_s(self) -> float:
        """Seconds between requests that the server asks for."""
        return self.parsed.crawl_delay(PRODUCT) or 0.0


class Robots:
    """The rules of servers. `fetch` asks for an address and follows redirections; it raises `FetchError`."""

    def __init__(self, fetch: Callable[[str], Answer]) -> None:
        self._fetch, self._locks, self._lock = fetch, dict[str, Lock](), Lock()
        self._known: dict[str, Rules | FetchError] = {}

    def of(self, server: str) -> Rules:
        """The rules of a server (`server_of`), asked for when they are first needed. Raises `FetchError` if it is one
        that is not asked at all, or there is none."""
        with self._lock:
            lock = self._locks.setdefault(server, Lock())
        with lock:
            if server not in self._known:
                self._known[server] = self._read(server)
            rules = self._known[server]
        if isinstance(rules, FetchError):
            raise rules
        return rules

    def _read(self, server: str) -> Rules | FetchError:
        try:
            answer = self._fetch(f"{server}/robots.txt")
            content = _content(answer) if answer.status == 200 else ""
        except FetchError as error:
            if error.reason in ("private", "no_host"):
                return error
            return Rules(Protego.parse(_NOTHING), f"robots.txt cannot be read: {error}")
        if answer.status == 200:
            return Rules(Protego.parse(content), "robots.txt")
        if 400 <= answer.status < 500 and answer.status != 429:
            return Rules(Protego.parse(_ALL), "no robots.txt")
        return Rules(Protego.parse(_NOTHING), f"robots.txt cannot be read: status {answer.status}")


def _content(answer: Answer) -> str:
    """The text of a robots.txt. Raises `FetchError` for one that is packed in a way that was not asked for."""
    encoding = answer.header("Content-Encoding").strip().lower()
    if encoding in ("", "identity"):
        body = answer.body[:MAX_BYTES]
    elif encoding in ("gzip", "x-gzip"):
        try:
            body = zlib.decompressobj(wbits=31).decompress(answer.body, MAX_BYTES)
        except zlib.error as error:
            raise FetchError("no_answer", f"no gzip: {error}") from None
    else:
        raise FetchError("no_answer", f"content encoding {encoding[:80]!r}")
    return body.decode("utf-8-sig", "replace")
