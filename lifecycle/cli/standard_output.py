"""Standard output whose reader may leave, as `head` does: the program then ends quietly, as other Unix programs do.

Python ignores SIGPIPE, so a write to such a pipe raises `BrokenPipeError`, as one to a client's socket or to a worker
process does. Only that of standard output is an ordinary end, so it has a class of its own.
"""

import io
import os
import sys
from typing import IO, Any

STATUS = 128 + 13  # as shells show the end by SIGPIPE


class ReaderLeft(BrokenPipeError):
    """Nobody reads standard output any more."""


class _Output(io.FileIO):
    """Standard output's file."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise ReaderLeft(*error.args) from None


def watch_standard_output() -> None:
    """From now on, writes to standard output that nobody reads raise `ReaderLeft`."""
    output = sys.stdout
    if not isinstance(output, io.TextIOWrapper):  # closed from the start, or replaced by who calls the program
        return
    output.flush()
    file = _Output(output.fileno(), "wb", closefd=False)
    is_unbuffered = isinstance(output.buffer, io.RawIOBase)  # by PYTHONUNBUFFERED
    sys.stdout = io.TextIOWrapper(
        file if is_unbuffered else io.BufferedWriter(file),
        encoding=output.encoding, errors=output.errors, line_buffering=output.line_buffering,
        write_through=output.write_through,
    )  # fmt: skip


def flush_standard_output() -> None:
    """Writes what is buffered; at its end Python could only print the error of it."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        send_nowhere(sys.stdout)  # Python would try again at its end
        raise


def send_nowhere(file: IO[str]) -> None:
    """What is still buffered goes nowhere, instead of into the closed pipe when the file is closed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)
