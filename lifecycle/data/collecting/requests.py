"""One request to a server on the web, with limits: where it may go, how long it may take, how much it may be.

What must hold: a connection goes to the network address that was checked, so that no name leads to a machine behind
the user's own doors (SSRF, DNS rebinding); an answer costs no more time and memory than its limits.
"""

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from threading import Timer
from urllib.parse import urlsplit

from lifecycle.core.config import ConfigError
from lifecycle.core.version import VERSION
from lifecycle.core.web_address import WebAddress, is_on_web

PRODUCT = "lifecycle"  # the name that robots.txt files address
CHUNK = 1 << 16
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Manners:
    """How servers are asked. `contact` is an address or a mail address, at which their owners reach who asks."""

    contact: str
    delay_s: float = 1.0  # between the requests to a server; its robots.txt may ask for more
    servers: int = 8  # asked at a time, each with one request
    max_bytes: int = 5_000_000
    answer_s: float = 60.0  # of a whole answer
    redirects: int = 5
    pauses_s: tuple[float, ...] = (2.0, 8.0)  # before a request is repeated
    # That a server may ask for. If an answer asks for more, the address has failed for now; if robots.txt does, none of
    # its addresses is asked for.
    longest_pause_s: float = 120.0
    private: bool = False  # whether addresses of this machine and of private networks may be asked

    @property
    def agent(self) -> str:
        """What servers are told."""
        return f"{PRODUCT}/{VERSION} (+{self.contact})"


@dataclass(frozen=True)
class Answer:
    """A server's answer: `headers` as they came, in order, `body` as it was sent, but not in chunks."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        """The first header of a name; "" if there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


class FetchError(ValueError):
    """No answer that can be used; `reason` is counted, and `is_passing` says that a later request may have one."""

    def __init__(self, reason: str, detail: str, is_passing: bool = False) -> None:
        super().__init__(detail)
        self.reason, self.is_passing = reason, is_passing


def server_of(url: str) -> str:
    """Scheme, host and port: what has one robots.txt and one queue. Raises `FetchError` for no address on the web."""
    if not is_on_web(url):
        raise FetchError("no_address", "not an address that begins with http:// or https://")
    try:
        WebAddress.of(url)
        parts = urlsplit(url)
        host = parts.hostname or ""
        named = f"[{host}]" if ":" in host else host
        return f"{parts.scheme.lower()}://{named}:{parts.port or PORTS[parts.scheme.lower()]}"
    except ConfigError as error:
        raise FetchError("no_address", str(error)) from None


def ask(
    url: str, manners: Manners, types: frozenset[str] | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Asks once, and follows nothing. The body of an answer of status 200 must be of one of the types, if given; others
    are not read. Raises `FetchError`."""
    server = server_of(url)
    scheme, host, port = server.partition("://")[0], urlsplit(server).hostname or "", urlsplit(server).port or 0
    connection = _Connection(host, port, scheme == "https", manners)
    parts = urlsplit(WebAddress.of(url).url)
    path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    sent = {"User-Agent": manners.agent, "Accept-Encoding": "gzip", "Connection": "close", **(headers or {})}
    watch = Timer(manners.answer_s, connection.abort)
    try:
        watch.start()
        connection.request("GET", path, headers=sent)
        answer = connection.getresponse()
        found = tuple(answer.getheaders())
        is_wanted = answer.status != 200 or types is None or _type(answer) in types
        body = _body(answer, manners.max_bytes) if answer.status == 200 and is_wanted else b""
    except (OSError, HTTPException, UnicodeError) as error:
        if connection.is_aborted:
            raise FetchError("too_slow", f"longer than {manners.answer_s:g} s", is_passing=True) from None
        raise FetchError("no_answer", f"{type(error).__name__}: {error}", is_passing=True) from None
    finally:
        watch.cancel()
        connection.close()
    if not is_wanted:
        raise FetchError("type", f"content of type {_type(answer)[:80]!r}")
    return Answer(answer.status, answer.reason, found, body)


def _type(answer: HTTPResponse) -> str:
    return (answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()


def _body(answer: HTTPResponse, max_bytes: int) -> bytes:
    length = answer.length  # counts down while it is read; None if it is not said, or no number
    if length is not None and length > max_bytes:
        raise FetchError("too_large", f"{length} bytes, more than {max_bytes}")
    parts: list[bytes] = []
    size = 0
    while data := answer.read(CHUNK):
        parts.append(data)
        size += len(data)
        if size > max_bytes:
            raise FetchError("too_large", f"more than {max_bytes} bytes")
    if length is not None and size != length:
        raise ConnectionError(f"{size} bytes of {length}")
    return b"".join(parts)


class _Response(HTTPResponse):
    """An answer whose chunks are not longer than they are said to be: http.client takes -1 for all that comes."""

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # pyrefly: ignore[missing-attribute] - typeshed has no private names
        if size < 0:
            raise HTTPException(f"a chunk of {size} bytes")
        return size


class _Connection(HTTPConnection):
    """Goes to a network address of the host that was checked."""

    response_class = _Response

    def __init__(self, host: str, port: int, is_secret: bool, manners: Manners) -> None:
        super().__init__(host, port, timeout=manners.answer_s)
        self._is_secret, self._manners, self.is_aborted = is_secret, manners, False
        self.default_port = PORTS["https" if is_secret else "http"]

    def connect(self) -> None:
        """Connects to the first of the host's addresses; raises `FetchError` if one of them is private."""
        self.sock = socket.create_connection(self._address(), self.timeout)
        if self._is_secret:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)

    def abort(self) -> None:
        """Ends an answer that takes too long, from another thread."""
        self.is_aborted = True
        if self.sock is not None:
            with suppress(OSError):  # it may have ended by itself
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def _address(self) -> tuple[str, int]:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise FetchError("no_host", f"{self.host}: {error}", is_passing=True) from None
        places = [str(entry[4][0]) for entry in found]
        private = [place for place in places if not ipaddress.ip_address(place.partition("%")[0]).is_global]
        if private and not self._manners.private:
            raise FetchError("private", f"{self.host} is {private[0]}, on this machine or in a private network")
        return places[0], self.port
