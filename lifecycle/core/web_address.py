"""Addresses on the web: what a server is asked for, and what may be said of it.

A query may hold a token or a signature. What must hold: as text, in messages and in records, an address has no query.
"""

import re
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit

from lifecycle.core.config import ConfigError

WEB = ("https://", "http://")
PUNCTUATION = "%/:?#[]@!$&'()*+,;="  # of an address (RFC 3986); all else in it is text, to be escaped
LONGEST_NAME = 200  # bytes, of a copy: file systems have 255, and names for what is not finished are longer


def is_on_web(place: str) -> bool:
    """Whether a place is an address on the web."""
    return place.lower().startswith(WEB)


@dataclass(frozen=True)
class WebAddress:
    """The address of a file, or of a folder's files. `str` of it may be shown and recorded; `url` may not."""

    server: str  # https://HOST
    path: str
    query: str = field(default="", repr=False)

    @classmethod
    def of(cls, place: str) -> "WebAddress":
        """Reads an address; raises `ConfigError` for what is none, and for one that holds a login."""
        try:
            parts = urlsplit(place)
            host, _ = (parts.hostname or "").encode("idna"), parts.port
        except ValueError:  # an invalid host or port
            host, parts = b"", urlsplit("")
        if not host or re.search(rb"[\x00-\x20\x7f]", host) or re.search(r"[\x00-\x1f]", place):
            raise ConfigError(f"{bare(place)}: not an address on the web; write it as https://HOST/PATH")
        if "@" in parts.netloc:
            raise ConfigError(f"{bare(place)}: given with a user or a password, which are not sent; leave them out")
        return cls(f"{parts.scheme}://{parts.netloc}", parts.path, parts.query)

    def __str__(self) -> str:
        return f"{self.server}{self.path}"

    @property
    def url(self) -> str:
        """What the server is asked for."""
        return quote(self._whole, safe=PUNCTUATION)

    @property
    def key(self) -> str:
        """Names this address among the copies."""
        return sha256(self._whole.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The last part of the path, as the name of a copy."""
        name = PurePosixPath(self.path).name.encode()[-LONGEST_NAME:].decode(errors="ignore")
        return name if name not in ("", "..") else "file"

    def below(self, name: str) -> "WebAddress":
        """The address of a file in this folder, with the same query."""
        return replace(self, path=f"{self.path.rstrip('/')}/{name}")

    @property
    def _whole(self) -> str:
        return f"{self}?{self.query}" if self.query else str(self)


def bare(place: str) -> str:
    """What may be said of an address of any kind that cannot be used: neither login nor query."""
    return re.split(r"[?#]", re.sub("//.*@", "//", place, flags=re.DOTALL))[0]


def shown(place: str) -> str:
    """A path or an address as messages and records have it."""
    return str(WebAddress.of(place)) if is_on_web(place) else place
