"""Two real processes, joined by gloo through the environment that launchers set, train as one process does."""

import json
import os
import socket
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import read_log
from lifecycle.model.decoder import abstract_params
from lifecycle.testing.jobs import MODEL, Settings, command, tiny_job
from lifecycle.testing.waiting import LIMIT_S
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.loop import CHECKPOINTS, METRICS, run_job

CLOSE = 1e-5


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_processes(out: Path, settings: Settings, count: int, devices: int) -> list[str]:
    """What each process prints; all are ended if one fails."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "LIFECYCLE_COORDINATOR": f"127.0.0.1:{free_port()}",
        "LIFECYCLE_NUM_PROCESSES": str(count),
    }
    started = [
        subprocess.Popen(
            command(out, settings),
            env=environment | {"LIFECYCLE_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        ended = [process.communicate(timeout=LIMIT_S) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, "\n".join(error for _, error in ended)
    return [output for output, _ in ended]


@pytest.mark.parametrize(("mesh", "devices"), [({"fsdp": 4}, 2), ({"tensor": 2}, 1)], ids=["rows", "heads"])
def test_two_processes_train_as_one(tmp_path: Path, mesh: dict[str, int], devices: int) -> None:
    """Weights sharded over both processes, with packing, accumulation and checkpoints: each process has its own rows,
    or both have the same rows and a part of each weight."""
    settings = Settings(steps=8, checkpoint_every=4)
    one, two = tmp_path / "one", tmp_path / "two"
    stats = run_job(tiny_job(one, settings), Silent())
    sharded = Settings(steps=8, checkpoint_every=4, mesh=mesh)
    outputs = run_processes(two, sharded, count=2, devices=devices)
    told = [[json.loads(line) for line in text.splitlines() if line.startswith("{")] for text in outputs]
    assert [len(lines) for lines in told] == [1, 0]  # one process writes; gloo prints a line of its own
    curves = [[r["loss"] for r in read_log(folder / METRICS) if "loss" in r] for folder in (one, two)]
    assert len(curves[0]) == len(curves[1]) == 8
    print(f"loss {np.abs(np.subtract(curves[0], curves[1])).max():.1e}")
    np.testing.assert_allclose(curves[1], curves[0], atol=CLOSE, rtol=0)
    assert told[0][0]["tokens"] == stats["tokens"]
    params = [load_params(folder / CHECKPOINTS, abstract_params(MODEL)) for folder in (one, two)]
    largest = 0.0
    for left, right in zip(jax.tree.leaves(params[0]), jax.tree.leaves(params[1]), strict=True):
        largest = max(largest, np.abs(left - right).max())
    print(f"weights {largest:.1e}")
    assert largest < CLOSE
