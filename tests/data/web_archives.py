"""WARC files for tests."""

import gzip
from collections.abc import Sequence


def record(kind: str, block: bytes, type: str = "application/http; msgtype=response", **fields: str) -> bytes:
    """A record; `fields` are further ones, with `_` for `-`."""
    lines = {
        "WARC-Type": kind, "WARC-Date": "2024-05-18T01:58:10Z", "WARC-Target-URI": "https://example.org/a",
        "Content-Type": type, "Content-Length": str(len(block)),
    } | {name.replace("_", "-"): value for name, value in fields.items()}  # fmt: skip
    return (
        "".join(["WARC/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "\r\n"]).encode()
        + block
        + b"\r\n\r\n"
    )


def answer(body: bytes, type: str | None = "text/html", status: str = "200 OK", **fields: str) -> bytes:
    """An HTTP answer."""
    lines = {} if type is None else {"Content-Type": type}
    lines |= {name.replace("_", "-"): value for name, value in fields.items()}
    return (
        "".join([f"HTTP/1.1 {status}\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items()), "\r\n"]).encode()
        + body
    )


def page(number: int, size: int = 300) -> bytes:
    """A record with a page of its own."""
    body = f"<title>Page {number}</title><p>Page {number}. {'word ' * (size // 5)}".encode()
    return record("response", answer(body), WARC_Target_URI=f"https://example.org/{number}")


def archive(records: Sequence[bytes]) -> bytes:
    """A file with a gzip member for each record."""
    return b"".join(gzip.compress(one, mtime=0) for one in records)
