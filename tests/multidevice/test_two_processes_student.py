"""Two real processes learn on a student's own answers as one does: all have the answers, and train on their rows."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.model.params import abstract_params
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.job import CHECKPOINTS
from tests.multidevice.test_two_processes import run_processes
from tests.rl.toy_policy import MODEL
from tests.rl.toy_student import trained

CLOSE = 1e-4  # weights after six steps; the processes sum in another order
NAMES = ("loss", "on_policy", "completions/mean_length", "completions/clipped_ratio")


@pytest.mark.long
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_two_processes_learn_on_own_answers_as_one(share: float, tmp_path: Path) -> None:
    trained(tmp_path / "one", {"fsdp": 2}, share, Silent())
    run_processes([sys.executable, "-m", "tests.rl.toy_student", str(tmp_path / "two"), str(share)], count=2, devices=1)
    one, two = (
        [(name, record[name]) for record in read_log(tmp_path / of / METRICS) for name in NAMES if name in record]
        for of in ("one", "two")
    )
    assert [name for name, _ in one] == [name for name, _ in two] and len(one) > 12
    np.testing.assert_allclose([value for _, value in two], [value for _, value in one], atol=CLOSE)
    weights = [load_params(tmp_path / of / CHECKPOINTS, abstract_params(MODEL)) for of in ("one", "two")]
    jax.tree.map(lambda left, right: np.testing.assert_allclose(right, left, atol=CLOSE), *weights)
