"""Reading what anyone may have written, in a process of its own: a library may crash, hang or fill memory over it.

Its program (`pdf_process.py`, `trafilatura_process.py`) limits its own memory and time (`reader_program.py`), so that
what is too much for it ends it, and costs that one file or page.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from lifecycle.data.reading.raw import UnreadableError
from lifecycle.data.reading.reader_program import LENGTH


def read_apart(program: Path, what: str, data: bytes) -> dict[str, Any]:
    """The answer of a program that reads `what`; raises `UnreadableError` if the data ends it."""
    return reader_of(os.getpid(), program, what).read(data)


@cache
def reader_of(pid: int, program: Path, what: str) -> "ReaderProcess":
    """One for each process of ours: a fork must not answer for another."""
    del pid
    return ReaderProcess(program, what)


class ReaderProcess:
    """The process of a program that reads `what`; another one is started when it has ended."""

    def __init__(self, program: Path, what: str) -> None:
        self._program, self._what = program, what
        self.process: subprocess.Popen[bytes] | None = None

    def read(self, data: bytes) -> dict[str, Any]:
        """Its answer; raises `UnreadableError` if the data ends it."""
        process = self.process = self.process or subprocess.Popen(
            [sys.executable, "-P", str(self._program)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and has no answer
            process.stdin.write(LENGTH.pack(len(data)) + data)
            process.stdin.flush()
        length = process.stdout.read(LENGTH.size)
        if len(length) == LENGTH.size:
            return json.loads(process.stdout.read(*LENGTH.unpack(length)))
        self.process = None
        status = process.wait()
        process.stdout.close()
        if status == -signal.SIGXCPU:
            raise UnreadableError("too_slow", "it takes more than a minute")
        raise UnreadableError("broken_file", f"the reader of {self._what} was ended by it (status {status})")
