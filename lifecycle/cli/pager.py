"""Long outputs: through the user's pager on a terminal, as they are elsewhere."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import chain
from typing import IO

from lifecycle.cli.standard_output import send_nowhere


def show_pages(pieces: Iterable[str]) -> None:
    """Prints the pieces as they come; a reader who leaves ends it. On a terminal they go through `$PAGER`, or `less` or
    `more` if there is one."""
    found = iter(pieces)
    first = next(found, "")  # an error comes before the pager
    with _output() as file:
        try:
            for piece in chain([first], found):
                file.write(piece)
            file.flush()
        except BrokenPipeError:  # the reader has seen enough
            send_nowhere(file)


@contextmanager
def _output() -> Generator[IO[str]]:
    command = _pager() if sys.stdout.isatty() else []
    if not command:
        yield sys.stdout
        return
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is a key of the pager's
    settings = {"LESS": "FX"} | os.environ  # a short output stays on the terminal
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, encoding="utf-8", env=settings) as pager:
            assert pager.stdin is not None
            yield pager.stdin
    finally:
        signal.signal(signal.SIGINT, interrupt)


def _pager() -> list[str]:
    """The command; empty if there is none."""
    named = shlex.split(os.environ.get("PAGER", ""))
    return next((command for command in (named, ["less"], ["more"]) if command and shutil.which(command[0])), [])
