"""Two real processes save: what one of them cannot write is a failed save in both, at once."""

import errno
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.testing.waiting import wait_until
from lifecycle.training.checkpoints.arrays import abstract_arrays
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.commit import Commit
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.home import RUN_ID, SharedFolder
from lifecycle.training.checkpoints.integrity import CheckpointError, steps_in
from lifecycle.training.checkpoints.reading import read_arrays
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import CHECKPOINTS
from lifecycle.training.loop import run_job
from lifecycle.training.run import TrainingRun
from tests.multidevice.test_two_processes import run_processes

pytestmark = pytest.mark.long

SMALL = 4096  # bytes


class Printed(Silent):
    def note(self, text: str) -> None:
        if not text.startswith("first step after"):  # of every session, and nothing about saving
            print("NOTE", text, flush=True)


class FullDisk:
    """No file of this process may grow beyond 4 KiB."""

    def __init__(self, checkpoints: Path) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def begin(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, self._before[1]))

    def end(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


class FileInTheWay:
    """Where the checkpoints' folder was, there is a file."""

    def __init__(self, checkpoints: Path) -> None:
        self._folder, self._aside = checkpoints, checkpoints.with_name("aside")

    def begin(self) -> None:
        self._folder.rename(self._aside)
        self._folder.touch()

    def end(self) -> None:
        self._folder.unlink()
        self._aside.rename(self._folder)


class Planted:
    """A function of this process raises an error."""

    def __init__(self, of: Any, name: str, error: Exception) -> None:
        self._of, self._name, self._error, self._before = of, name, error, getattr(of, name)

    def begin(self) -> None:
        def fail(*_: object, **__: object) -> None:
            raise self._error

        setattr(self._of, self._name, fail)

    def end(self) -> None:
        setattr(self._of, self._name, self._before)


TROUBLES = {
    "full disk": FullDisk,
    "file in the way": FileInTheWay,
    # before Orbax would wait for the others
    "stale handle": lambda _: Planted(ocp.AsyncCheckpointer, "save", OSError(errno.ESTALE, "Stale file handle")),
    "bug": lambda _: Planted(SharedFolder, "written", KeyError("params")),
}


class Trouble(Hook):
    """A process has a trouble after step 3, and once a checkpoint is there; with `once`, until its first failed
    save."""

    def __init__(self, what: str, process: int, once: bool) -> None:
        self._what, self._process, self._once = what, process, once

    def after_step(self, run: TrainingRun) -> None:
        if run.step == 3 and jax.process_index() == self._process:
            checkpoints = run.job.out / CHECKPOINTS
            wait_until(lambda: bool(steps_in(checkpoints)))
            trouble, fail = TROUBLES[self._what](checkpoints), Commit.fail
            trouble.begin()

            def told(commit: Commit, error: BaseException) -> None:
                if self._once:
                    trouble.end()
                fail(commit, error)

            setattr(Commit, "fail", told)  # noqa: B010 - in this process, which ends with the run


def train(out: Path, what: str, process: int, once: bool, **checkpoint: Any) -> None:
    """One process's part of a job on whose second save one of the processes has a trouble."""
    settings = TinyRun(steps=8, checkpoint_every=2, mesh={"fsdp": 2}, checkpoint=checkpoint)
    try:
        run_job(tiny_job(out, settings), Printed(), [Trouble(what, process, once)])
        print("ENDED", json.dumps(steps_in(out / CHECKPOINTS)), flush=True)
    except CheckpointError as error:
        print("RAISED", error, flush=True)


class KillAll(Hook):
    """Kills this process after a step, once its local checkpoint of the one before is written."""

    def __init__(self, step: int | None, disk: Path) -> None:
        self._step, self._disk = step, disk

    def after_step(self, run: TrainingRun) -> None:
        if run.step == self._step:
            wait_until(lambda: any(self._disk.glob(f"*/*/{jax.process_index()}/{run.step - 1}")))
            os.kill(os.getpid(), signal.SIGKILL)


def train_locally(out: Path, disks: str, kill_at: int | None = None, order: str = "01", **mesh: int) -> None:
    """One process's part of a job that saves every second step on its host's disk, and durably only at the end.
    `order`: on which host each process is."""
    disk = Path(disks) / order[jax.process_index()]
    settings = TinyRun(steps=8, mesh=mesh, checkpoint={"local": {"folder": str(disk), "every": 2}})
    stats = run_job(tiny_job(out, settings), Printed(), [KillAll(kill_at, disk)])
    print("ENDED", stats["params_hash"], flush=True)


PROCESS = """
import json, os, sys
from pathlib import Path
from lifecycle.core import distributed
distributed.start()
from tests.multidevice import test_two_processes_saving
getattr(test_two_processes_saving, sys.argv[2])(Path(sys.argv[1]), **json.loads(sys.argv[3]))
"""


def said(out: Path, function: str, status: int = 0, **settings: Any) -> list[list[str]]:
    command = [sys.executable, "-c", PROCESS, str(out), function, json.dumps(settings)]
    outputs = run_processes(command, count=2, devices=1, status=status)
    return [[line for line in text.splitlines() if line[:4] in ("NOTE", "ENDE", "RAIS", "READ")] for text in outputs]


@pytest.mark.parametrize(
    ("what", "process", "cause"),
    [
        ("full disk", 1, "File too large"),
        ("full disk", 0, "File too large"),
        ("file in the way", 0, "Not a directory"),
        ("stale handle", 1, "Stale file handle"),
        ("bug", 1, "KeyError: 'params'"),
    ],
)
def test_a_process_that_cannot_write_ends_the_save_of_all_and_the_job_goes_on(
    tmp_path: Path, what: str, process: int, cause: str
) -> None:
    """Step 6 is saved if the failure was still unknown when it was due. What the other process says is what it was
    told, not that it waited in vain."""
    both = said(tmp_path, "train", what=what, process=process, once=True)
    assert f"process {process}: " in both[1 - process][0]
    saved = sorted(int(path.name) for path in (tmp_path / CHECKPOINTS).iterdir())
    assert saved in ([2, 8], [6, 8])
    for note, *_, ended in both:
        assert "training goes on unsaved" in note and cause in note
        assert "the checkpoint of step 4 could not be written" in note and ended == f"ENDED {saved}"


def test_a_process_that_cannot_write_ends_the_job_in_all_processes(tmp_path: Path) -> None:
    for told in said(tmp_path, "train", what="full disk", process=1, once=False, max_unsaved_minutes=0):
        *_, raised = told
        assert raised.startswith("RAISED") and "File too large" in raised and "continues from step 2" in raised
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["2"]


@pytest.fixture(scope="module", params=["replica", "fsdp"])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """(the axis over two processes; the folder of a run killed after step 7, with local checkpoints of steps 4 and 6
    and no durable one; what its weights would have become)."""
    axis, folder = request.param, tmp_path_factory.mktemp("killed")
    (expected,) = said(folder / "whole", "train_locally", disks=str(folder / "others"), **{axis: 2})[0]
    out, disks = folder / "out", folder / "disks"
    said(out, "train_locally", status=-signal.SIGKILL, disks=str(disks), kill_at=7, **{axis: 2})
    assert sorted(path.name for path in disks.glob("*/*/*/*/*")) == ["4", "4", "6", "6"]
    assert [path.name for path in (out / CHECKPOINTS).iterdir()] == [RUN_ID]
    shutil.copytree(folder, folder.with_name(f"{folder.name}-kept"))
    return axis, folder, expected


@pytest.mark.parametrize("came_back", ["without 0", "without 1", "as 10"])
def test_what_is_left_on_the_hosts_disks_goes_on(killed: tuple[str, Path, str], came_back: str) -> None:
    """One host's disk is lost, the first one's or the other's: with a replica the other has every piece, else the run
    starts over. Or the hosts come back in another order, and each process has the other's pieces."""
    axis, folder, expected = killed
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name(f"{folder.name}-kept"), folder)
    how, which = came_back.split()
    if how == "without":
        shutil.rmtree(folder / "disks" / which)
    order = which if how == "as" else "01"
    told = said(folder / "out", "train_locally", disks=str(folder / "disks"), order=order, **{axis: 2})
    begun = [record["step"] for record in read_log(folder / "out" / METRICS) if "compile_s" in record]
    if axis == "fsdp" and how == "without":
        assert all("on no host, the first ['opt_state']" in note for note in told[0][:-1]) and len(told[0]) == 3
        assert f"processes [{which}] need them" in told[0][0] and begun[-1] == 0
    else:
        assert "resuming from the local checkpoint of step 6" in told[0][0] and begun[-1] == 6
    assert [lines[-1] for lines in told] == [expected] * 2
    assert not list((folder / "disks").glob("*/*"))


SIZE = 4096  # of a side: 64 MiB in float32


def restore(out: Path, is_saving: bool, **mesh: int) -> None:
    """One process's part of a job that saves a large array and counters, or restores them, on a mesh."""
    sharding = NamedSharding(build_mesh(MeshConfig(**mesh)), P(None, "fsdp"))
    values = np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    values[0] = -0.0
    shape = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding)
    checkpoints = Checkpointer(out, CheckpointConfig())
    if is_saving:
        placed = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
        checkpoints.save(1, {"params": {"w": placed}, "opt_state": {"w": placed}}, {"step": 1}, {})
        checkpoints.wait()
    else:
        wanted = {name: {"w": shape} for name in ("params", "opt_state")}
        before = bytes_read()
        read_arrays(out / "1" / "params", abstract_arrays(wanted["params"]))
        print("READ", bytes_read() - before, flush=True)
        state, data, _ = checkpoints.restore(wanted)
        for array in jax.tree.leaves(state):
            for shard in array.addressable_shards:
                assert np.asarray(shard.data).tobytes() == values[shard.index].tobytes()
        assert data == {"step": 1}
    checkpoints.close()


def bytes_read() -> int:
    """By this process so far, from files and the page cache alike."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.parametrize(("axis", "shares"), [("replica", (1, 0)), ("fsdp", (0.5, 0.5))])
def test_with_replicas_the_first_reads_and_the_others_receive(
    tmp_path: Path, axis: str, shares: tuple[float, float]
) -> None:
    """An array of 64 MiB of noise, which no compression makes smaller than 0.9 of that."""
    said(tmp_path, "restore", is_saving=True, **{axis: 2})
    read = [int(lines[0].split()[1]) for lines in said(tmp_path, "restore", is_saving=False, **{axis: 2})]
    print(f"{axis}: {read} bytes")
    for found, share in zip(read, shares, strict=True):
        assert abs(found / (4 * SIZE**2) - share) < 0.1
