"""Two real processes learn on a student's own answers as one does: all have the answers, and train on their rows."""

import sys
from pathlib import Path

import pytest

from lifecycle.core.progress import Silent
from tests.multidevice.test_two_processes import run_processes
from tests.multidevice.test_two_processes_rollouts import assert_as_one
from tests.rl.toy_student import trained


@pytest.mark.long
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_two_processes_learn_on_own_answers_as_one(share: float, tmp_path: Path) -> None:
    trained(tmp_path / "one", {"fsdp": 2}, share, Silent())
    run_processes([sys.executable, "-m", "tests.rl.toy_student", str(tmp_path / "two"), str(share)], count=2, devices=1)
    assert_as_one(tmp_path, ("loss", "on_policy", "completions/mean_length", "completions/clipped_ratio"))
