"""A tiny stage that learns from rewards, as a program: one process, for tests that kill it.

`python -m tests.rl.policy_job OUT KIND SETTINGS`: an objective's name, and its settings as JSON; prints the stats.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax

from lifecycle.core.progress import Silent
from lifecycle.model.params import init_params
from lifecycle.rl.hook import LogRollouts
from lifecycle.rl.samples import Samples
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.objectives.registry import objective_kind
from tests.rl.toy_policy import MODEL, batches_of, one_device, settings


def run_policy(out: Path, kind: str, own: dict[str, Any]) -> dict[str, Any]:
    """Trains, or goes on, and returns the stats."""
    of_kind: Any = objective_kind(kind).settings
    config = settings(of_kind, **own)
    model = config.trained(MODEL)
    params = init_params(model, jax.random.key(0))
    batches = batches_of(config, params, model)
    job = TrainJob(model, config, one_device(), build_objective(model, config), batches, params, out)
    return run_job(job, Silent(), [LogRollouts(batches, Samples(out, Silent()), Silent())])


def command(out: Path, kind: str, own: dict[str, Any]) -> list[str]:
    """The command line of the process, from the repository's root."""
    return [sys.executable, "-m", "tests.rl.policy_job", str(out), kind, json.dumps(own)]


if __name__ == "__main__":
    print(json.dumps(run_policy(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))))
