"""Two real processes, joined by gloo through the environment that launchers set, train and generate as one does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.core.stopping import RESTART_STATUS
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.params import abstract_params, init_params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.jobs import TinyRun, command, tiny_job
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.testing.waiting import LIMIT_S
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.training.checkpoints.integrity import steps_in
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.job import CHECKPOINTS
from lifecycle.training.loop import run_job
from lifecycle.training.taught import TEACHER_IDS, TEACHER_LOGPROBS
from tests.multidevice.taught_twice import asked_in_two_goes

CLOSE = 1e-5

pytestmark = pytest.mark.slow  # two processes at a time, each with compilations of its own


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_processes(arguments: list[str], count: int, devices: int, status: int = 0) -> list[str]:
    """What each process prints; all are ended if one fails."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "LIFECYCLE_COORDINATOR": f"127.0.0.1:{free_port()}",
        "LIFECYCLE_NUM_PROCESSES": str(count),
    }
    started = [
        subprocess.Popen(
            arguments,
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
    assert [process.returncode for process in started] == [status] * count, "\n".join(error for _, error in ended)
    return [output for output, _ in ended]


@pytest.mark.long
def test_two_processes_ask_a_teacher_and_go_on_from_what_one_has_kept(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.multidevice.taught_twice", str(tmp_path / "two")]
    first, second = (json.loads(said.splitlines()[-1]) for said in run_processes(program, 2, devices=1))
    assert first == second and not (tmp_path / "two/1/t.npz").exists()
    table = asked_in_two_goes(tmp_path / "one")
    assert first[0] == table[TEACHER_IDS].tolist()
    np.testing.assert_allclose(first[1], table[TEACHER_LOGPROBS], atol=CLOSE)


@pytest.mark.parametrize(
    ("mesh", "devices"),
    [
        pytest.param({"fsdp": 4}, 2, id="rows", marks=pytest.mark.long),  # the gate has it of the command line's runs
        pytest.param({"tensor": 2}, 1, id="heads", marks=pytest.mark.matrix),
    ],
)
def test_two_processes_train_as_one(tmp_path: Path, mesh: dict[str, int], devices: int) -> None:
    """Weights sharded over both processes, with packing, accumulation and checkpoints: each process has its own rows,
    or both have the same rows and a part of each weight."""
    settings = TinyRun(steps=8, checkpoint_every=4)
    one, two = tmp_path / "one", tmp_path / "two"
    stats = run_job(tiny_job(one, settings), Silent())
    sharded = TinyRun(steps=8, checkpoint_every=4, mesh=mesh)
    outputs = run_processes(command(two, sharded), count=2, devices=devices)
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


MOVES = [
    pytest.param({"replica": 2, "fsdp": 2}, 4, id="the same"),
    pytest.param({}, 1, id="one"),
    pytest.param({"stage": 2}, 2, id="two stages"),
    pytest.param({"fsdp": 2, "expert": 4}, 8, id="eight"),
]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four processes on a mixture of three sources; its checkpoints of steps 8 and 12 are there."""
    out = tmp_path_factory.mktemp("four") / "run"
    run_processes(command(out, MOVED), count=4, devices=1)
    return out


MOVED = TinyRun(steps=12, checkpoint_every=4, is_mixed=True, is_recorded=True, mesh={"replica": 2, "fsdp": 2})


def recorded(out: Path, step: int) -> np.ndarray:
    """The tokens of a global batch, from the parts that the processes have written."""
    parts = sorted((out / "batches").glob(f"{step}-*.npy"), key=lambda path: int(path.stem.partition("-")[2]))
    return np.concatenate([np.load(part) for part in parts])


@pytest.mark.long
@pytest.mark.parametrize(("mesh", "count"), MOVES)
def test_what_four_processes_saved_goes_on_on_any_number(
    four: Path, tmp_path: Path, mesh: dict[str, int], count: int
) -> None:
    out = tmp_path / "moved"
    shutil.copytree(four, out, ignore=shutil.ignore_patterns("batches", "12"))
    run_processes(command(out, replace(MOVED, mesh=mesh)), count=count, devices=1)
    for step in (8, 9, 10, 11):
        assert recorded(out, step).shape == (16, 32)
        np.testing.assert_array_equal(recorded(out, step), recorded(four, step))
    assert not list((out / "batches").glob("7-*"))
    curves = [[r["loss"] for r in read_log(folder / METRICS) if "loss" in r] for folder in (four, out)]
    print(f"{mesh}: loss {np.abs(np.subtract(curves[0], curves[1])).max():.1e}")
    assert len(curves[1]) == 12
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-6, rtol=0)
    if mesh == MOVED.mesh:
        expected = [load_params(folder / CHECKPOINTS, abstract_params(MODEL)) for folder in (four, out)]
        jax.tree.map(np.testing.assert_array_equal, *expected)


@pytest.fixture(scope="module")
def branch(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyRun, Path, Path]:
    """(a run of two processes that goes on from another's step 8 with a mixture, longer rows and more of them; its
    folder, undisturbed; its folder when both were killed after step 14)."""
    folder = tmp_path_factory.mktemp("branch")
    before = replace(MOVED, steps=8, is_mixed=False, mixture={}, mesh={"fsdp": 2})
    run_processes(command(folder / "before", before), count=2, devices=1)
    settings = replace(
        before, steps=20, mixture={"a": 5, "b": 2, "c": 1}, seq_len=48, global_batch_size=32,
        goes_on_from=(str(folder / "before"), 8),
    )  # fmt: skip
    run_processes(command(folder / "whole", settings), count=2, devices=1)
    killed = replace(settings, kill_at=14, kill_after=12, kill_all=True)
    run_processes(command(folder / "killed", killed), count=2, devices=1, status=-signal.SIGKILL)
    return settings, folder / "whole", folder / "killed"


@pytest.mark.long
@pytest.mark.parametrize(("mesh", "count"), MOVES[1:3])
def test_a_branch_that_is_killed_goes_on_on_any_number(
    branch: tuple[TinyRun, Path, Path], tmp_path: Path, mesh: dict[str, int], count: int
) -> None:
    settings, whole, killed = branch
    assert steps_in(killed / CHECKPOINTS) == [12] and recorded(killed, 12).shape == (32, 48)
    out = tmp_path / "moved"
    shutil.copytree(killed, out, ignore=shutil.ignore_patterns("batches"))
    run_processes(command(out, replace(settings, mesh=mesh)), count=count, devices=1)
    for step in range(12, 20):
        np.testing.assert_array_equal(recorded(out, step), recorded(whole, step))
    assert not list((out / "batches").glob("11-*"))
    logs = [[record for record in read_log(folder / METRICS) if "loss" in record] for folder in (whole, out)]
    steps, curves = ([[record[name] for record in log] for log in logs] for name in ("step", "loss"))
    print(f"{mesh}: loss {np.abs(np.subtract(curves[0], curves[1])).max():.1e}")
    assert steps == [list(range(9, 21))] * 2
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-6, rtol=0)


def test_a_notice_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    """JAX's service polls for the notice each second and chooses the step; the other process is told by the service."""
    settings = TinyRun(steps=100_000, checkpoint_every=100_000, mesh={"fsdp": 2}, kill_at=10, kill_by="SIGTERM")
    outputs = run_processes(command(tmp_path, settings), count=2, devices=1, status=RESTART_STATUS)
    (step,) = steps_in(tmp_path / CHECKPOINTS)
    assert step > 10
    assert all(f"stopped after step {step} of 100000, which is saved" in output for output in outputs)


def generated(axes: dict[str, int]) -> list[list[int]]:
    """What a tiny model generates on a mesh over all devices of a job."""
    tokenizer = ByteTokenizer()
    config = MODEL.model_copy(update={"vocab_size": 264})
    model = Model(config, init_params(config, jax.random.key(0)), tokenizer, ChatTemplate(tokenizer))
    greedy = SamplingParams(temperature=0.0, max_tokens=8, stop_ids=())
    each = [greedy, SamplingParams(temperature=1.0, seed=3, max_tokens=20, stop_ids=()), greedy]
    return [c.token_ids for c in generate(model, [[1, 2], [3], [4] * 9], each, mesh=build_mesh(MeshConfig(**axes)))]


PROCESS = """
import json, sys
from lifecycle.core import distributed
distributed.start()
from tests.multidevice.test_two_processes import generated
print(json.dumps(generated(json.loads(sys.argv[1]))))
"""


@pytest.mark.long
def test_two_processes_generate_as_one() -> None:
    """Both call it alike, and both get all outputs: rows and heads are on both."""
    mesh = {"fsdp": 2, "tensor": 2}
    outputs = run_processes([sys.executable, "-c", PROCESS, json.dumps(mesh)], count=2, devices=2)
    told = [json.loads(line) for text in outputs for line in text.splitlines() if line.startswith("[[")]
    assert told == [generated({})] * 2
