"""A process that reads what anyone may have written, by a library that may crash, hang or fill memory over it.

Its program (`pdf_process.py`, `trafilatura_process.py`) limits its own memory and time, so that what is too much for it
ends it, and costs that one file or page.
"""

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lifecycle.data.reading.pdf_process import LENGTH
from lifecycle.data.reading.raw import UnreadableError


class ReaderProcess:
    """The process of a program that reads `what`; another one is started when it has ended."""

    def __init__(self, program: Path, what: str) -> None:
        self._program, self._what = program, what
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, data: bytes, max_text: int) -> dict[str, Any]:
        """Its answer, of whose text it may give so many bytes; raises `UnreadableError` if the data ends it."""
        process = self._process = self._process or subprocess.Popen(
            [sys.executable, "-P", str(self._program)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and has no answer
            process.stdin.write(LENGTH.pack(len(data)) + LENGTH.pack(max_text) + data)
            process.stdin.flush()
        length = process.stdout.read(LENGTH.size)
        if len(length) == LENGTH.size:
            return json.loads(process.stdout.read(*LENGTH.unpack(length)))
        self._process = None
        status = process.wait()
        process.stdout.close()
        if status == -signal.SIGXCPU:
            raise UnreadableError("too_slow", "it takes more than a minute")
        raise UnreadableError("broken_file", f"the reader of {self._what} was ended by it (status {status})")
