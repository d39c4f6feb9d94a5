"""A reader of standard output who leaves ends a program quietly; any other closed pipe is a fault that is told."""

import os
import select
import subprocess
import sys
from collections.abc import Sequence

import pytest

from lifecycle.cli.standard_output import STATUS

LIMIT_S = 20.0
VERB = "from lifecycle.cli import main as cli\n@cli.app.command\ndef said():\n    {}\ncli.main()"


def started(verb: str, stdout: int, stdin: int | None = None) -> subprocess.Popen[bytes]:
    """The program with a verb `said` that does this."""
    command: Sequence[str] = [sys.executable, "-c", VERB.format(verb), "said"]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)


def closed_pipe() -> int:
    """The end for writing of a pipe that has no reader."""
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs


@pytest.mark.parametrize(
    "verb",
    [
        "print('short')",  # stays in the buffer until the end
        "print('long' * 100_000)",
        "from lifecycle.cli.terminal import terminal; terminal().print('shown')",
        "print('short'); raise SystemExit(3)",
    ],
)
def test_a_reader_who_has_left_ends_it_quietly(verb: str) -> None:
    stdout = closed_pipe()
    with started(verb, stdout) as process:
        os.close(stdout)
        assert process.stderr is not None and process.stderr.read() == b""
        assert process.wait() == STATUS


def test_another_closed_pipe_is_told_even_if_the_reader_has_left() -> None:
    stdout = closed_pipe()
    with started("import os; ours, theirs = os.pipe(); os.close(ours); os.write(theirs, b'x')", stdout) as process:
        os.close(stdout)
        assert process.stderr is not None and b"BrokenPipeError" in process.stderr.read()
        assert process.wait() == 1


def test_unbuffered_output_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    with started("import sys; print('short'); sys.stdin.read(1)", subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert select.select([process.stdout], [], [], LIMIT_S)[0], "nothing to read while the program goes on"
        assert process.stdout.readline() == b"short\n"
        process.stdin.write(b"\n")


def test_a_full_disk_is_told_once() -> None:
    with open("/dev/full", "w") as full, started("print('short')", full.fileno()) as process:
        assert process.stderr is not None
        assert process.stderr.read().replace(b"\n", b" ").startswith(b"lifecycle: [Errno 28] No space left on device;")
        assert process.wait() == 1
