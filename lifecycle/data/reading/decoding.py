"""Bytes to characters: byte-order marks, declared encodings, UTF-8, and a guess only where none of them fits."""

import codecs
import io
import re
import tokenize
from pathlib import PurePosixPath

from resiliparse.parse.encoding import (
    detect_encoding,
    map_encoding_to_html5,
)

from lifecycle.data.reading.raw import UnreadableError

SNIFF_BYTES = 8192  # searched for a NUL byte, as Git does
MAX_CONTROL_SHARE = 0.01  # binary data decoded as text has 10 % or more; text files have next to none
MAX_HIGH_SHARE = 0.1  # of a text in Latin letters that are mostly ASCII; French has 4 %
_HIGH = re.compile(rb"[\x80-\xff]+")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32",
         b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # fmt: skip


def require_text(data: bytes) -> None:
    """Raises `UnreadableError` for bytes that are empty or binary."""
    if not data.strip():
        raise UnreadableError("empty", f"{len(data)} bytes and no text")
    if b"\0" in data[:SNIFF_BYTES] and _bom(data) is None:
        raise UnreadableError("binary", "holds NUL bytes")


def decode(data: bytes, format: str, path: str, charset: str | None = None) -> str:
    """Decodes by byte-order mark, `charset`, declared encoding, UTF-8 or detection; raises `UnreadableError` if none
    fits.

    `charset` is what the file's container says, such as an HTTP header. What is declared and wrong is common: text that
    is not ASCII and is valid UTF-8 is UTF-8. A few wrong bytes in a file of known encoding become U+FFFD, as in a
    browser; they are counted by `normalise`.
    """
    encoding = _bom(data)
    if encoding is None and (data.isascii() or not _is_utf8(data)):
        encoding = _named(charset) or _declared(data, format, path)
    try:
        text = data.decode(encoding or "utf-8", "replace" if encoding else "strict")
    except (UnicodeError, LookupError):  # codecs such as `idna` or `undefined` raise a plain UnicodeError
        text = _decode_detected(data)
    if len(_CONTROL.findall(text)) > MAX_CONTROL_SHARE * len(text):
        raise UnreadableError("undecodable", "more than 1 in 100 characters are control characters or replacements")
    return text


def encoding_of(head: bytes) -> str:
    """The encoding of a file that is decoded line by line, by its first bytes: UTF-8, or a guess of one that has the
    bytes of ASCII too. Raises `UnreadableError` for UTF-16, UTF-32 and binary files."""
    bom = _bom(head)
    if bom not in (None, "utf-8-sig") or b"\0" in head[:SNIFF_BYTES]:
        raise UnreadableError("undecodable", f"{bom or 'holds NUL bytes'}: save it as UTF-8")
    return "utf-8-sig" if _is_utf8(head) else detect_encoding(head, html5_compatible=False) or "utf-8-sig"


def _is_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8; a character that the last ones begin may be cut off."""
    try:
        codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError:
        return False
    return True


def _named(charset: str | None) -> str | None:
    """The encoding that browsers use for a label; None for an unknown one."""
    return map_encoding_to_html5(charset.strip("\"' "), fallback_utf8=False) if charset else None


def _bom(data: bytes) -> str | None:
    return next((encoding for bom, encoding in _BOMS.items() if data.startswith(bom)), None)


def _declared(data: bytes, format: str, path: str) -> str | None:
    """The encoding that a Python file's cookie or a page's meta tag names; None if there is none or it is unknown."""
    if format in ("html", "epub"):
        return detect_encoding(data, from_html_meta=True)
    if format == "python_dict" or PurePosixPath(path).suffix in (".py", ".pyi"):
        try:
            cookie = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
            return None if cookie == "utf-8" else cookie  # utf-8 is also the default without a cookie
        except SyntaxError:  # an unknown cookie, or no cookie and not UTF-8
            return None
    return None


def _decode_detected(data: bytes) -> str:
    encoding = detect_encoding(data, html5_compatible=False)
    if encoding is None and sum(map(len, _HIGH.findall(data))) <= MAX_HIGH_SHARE * len(data):
        encoding = "cp1252"  # as browsers take it for
    if encoding is None:
        raise UnreadableError("undecodable", "not UTF-8, and no other encoding was recognised")
    try:
        return data.decode(encoding, "replace")
    except LookupError:
        raise UnreadableError("undecodable", f"looks like {encoding}, which Python cannot decode") from None
