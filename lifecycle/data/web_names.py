"""Addresses of pages in one spelling, so that two that lead to the same page are equal."""

from collections.abc import Iterator
from hashlib import blake2b
from urllib.parse import SplitResult, urlsplit

ADDRESS_BYTES = 16  # of its hash
_PORTS = {"http": 80, "https": 443}


def address_hash(url: str) -> bytes:
    """The same for all spellings of an address."""
    return blake2b(canonical(url).encode(), digest_size=ADDRESS_BYTES).digest()


def canonical(url: str) -> str:
    """Without scheme, fragment, default port and the slash at the end; the host in lower case, without `www` and in
    ASCII.

    What is no address stays as it is.
    """
    parts = _split(url)
    if parts is None or not parts.hostname:
        return url.strip()
    host, port = _host(parts), _port(parts)
    kept = "" if port in (None, _PORTS.get(parts.scheme.lower())) else f":{port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{host}{kept}{parts.path.rstrip('/')}{query}"


def host_of(url: str) -> str:
    """The host in lower case and without `www`; empty for what is no address."""
    parts = _split(url)
    return "" if parts is None else _host(parts)


def hosts_above(host: str) -> Iterator[str]:
    """A host and those that it is below: a.b.org, b.org, org."""
    while host:
        yield host
        host = host.partition(".")[2]


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url.strip())
    except ValueError:  # a bracket that is not closed
        return None


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").rstrip(".").removeprefix("www.")
    return host if host.isascii() else _encoded(host)


def _encoded(host: str) -> str:
    """A host as the name system and crawls have it, `xn--bcher-kva.de` for `bücher.de`; what is none as it is."""
    try:
        return host.encode("idna").decode()
    except UnicodeError:  # an empty label, or one of more than 63 bytes
        return host


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:  # not a number, or too large
        return None
