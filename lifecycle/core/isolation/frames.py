"""Messages between processes: JSON behind its length, over a pipe. Nothing that is read runs code."""

import json
import os
import select
import struct
import time
from typing import Any

HEAD = struct.Struct("<I")


class FrameError(ValueError):
    """What came is no message: too long, cut off, or no JSON."""


def write_frame(descriptor: int, value: Any) -> None:
    """Writes one message whole; raises `BrokenPipeError` if nobody reads, `ValueError` or `TypeError` for no JSON."""
    body = json.dumps(value).encode()
    left = memoryview(HEAD.pack(len(body)) + body)
    while left:
        left = left[os.write(descriptor, left) :]


def read_frame(descriptor: int, most_bytes: int, deadline: float | None = None) -> Any:
    """The next message.

    Raises `EOFError` at the end, `TimeoutError` at `deadline` (of `time.monotonic`), and `FrameError` for what is no
    message of at most `most_bytes`.
    """
    head = _read(descriptor, HEAD.size, deadline)
    length = HEAD.unpack(head)[0]
    if length > most_bytes:
        raise FrameError(f"a message of {length:,} bytes, more than {most_bytes:,}")
    try:
        return json.loads(_read(descriptor, length, deadline))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"no JSON: {error}") from None


def _read(descriptor: int, length: int, deadline: float | None) -> bytes:
    got = bytearray()
    while len(got) < length:
        if deadline is not None and not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError("no message in time")
        part = os.read(descriptor, min(length - len(got), 1 << 16))
        if not part:
            raise EOFError("the other side has closed")
        got += part
    return bytes(got)
