"""Signals that end a process wherever they find it."""

import subprocess
import sys
import time

import pytest

# A signal arrives while Python runs a callback that cannot raise; what the program does then would take a minute.
PROGRAM = """
import os, signal, sys, time
from lifecycle.cli import main

class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.001)

def app():
    held = Held()
    del held
    time.sleep(60)

main.app = app
main.main()
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_signal_in_a_callback_that_cannot_raise_is_not_lost(name: str, status: int) -> None:
    began = time.monotonic()
    command = [sys.executable, "-c", PROGRAM.format(name=name)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert ended.returncode == status and time.monotonic() - began < 40
    assert "the same command continues from here" in ended.stderr and "Traceback" not in ended.stderr
