"""Traced steps: the trace is written by a real run, and read back as operations whose times add up."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lifecycle.core.timesheet import TIMES, read_sessions
from lifecycle.report.operations import _own_times, operations, trace_files
from lifecycle.testing.jobs import TinyRun

TRACED = """
import sys
from pathlib import Path
from lifecycle.core.progress import Silent
from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.training.hooks.profile import Profile
from lifecycle.training.loop import run_job
run_job(tiny_job(Path(sys.argv[1]), TinyRun(steps=4)), Silent(), [Profile(2, 3)])
"""


@pytest.mark.slow
def test_the_operations_of_the_traced_steps_are_read_back(tmp_path: Path) -> None:
    """In a process of its own: a trace has what all threads of a process do."""
    subprocess.run([sys.executable, "-c", TRACED, str(tmp_path)], check=True)
    found = operations(trace_files(tmp_path))
    steps = 2
    assert len([op for op in found if op.count == steps * TinyRun().grad_accum]) > 10  # those of a micro-batch
    assert found == sorted(found, key=lambda op: (-op.seconds, op.name)) and found[0].seconds > 0
    (session,) = read_sessions(tmp_path / TIMES)
    assert session.last.seconds["profile"] > 0


def test_a_folder_without_a_trace_is_refused_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no trace here.*profile=10-12"):
        trace_files(tmp_path)


def test_an_operations_time_is_without_those_inside_it() -> None:
    spans = [("while", 0, 100), ("dot", 10, 30), ("fusion", 50, 40), ("part", 60, 10), ("copy", 100, 5)]
    events = [SimpleNamespace(name=n, start_ns=start, duration_ns=long) for n, start, long in spans]
    assert dict(_own_times(events)) == {"while": 30, "dot": 30, "fusion": 30, "part": 10, "copy": 5}
