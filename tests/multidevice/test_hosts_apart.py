"""Hosts that share no folder: all killed once, they come back as twice as many, on empty disks, and end with the
version of a run on one disk. A store that is away in the middle of a save stops no training."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lifecycle.core.artifact import MANIFEST
from lifecycle.core.store import Store, StoreError
from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.testing.waiting import LIMIT_S, wait_until
from lifecycle.training.checkpoints.destination import Destination
from lifecycle.training.checkpoints.home import RUN_ID
from lifecycle.training.checkpoints.stored import SCRATCH
from lifecycle.training.job import CHECKPOINTS
from lifecycle.training.loop import run_job
from lifecycle.training.run import TrainingRun
from tests.multidevice.test_two_processes import free_port, run_processes
from tests.multidevice.test_two_processes_saving import KillAll, Printed

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("s3")]

CONFIG = Path(__file__).parents[2] / "configs" / "debug.yaml"
STAGES = ("pretrain", "sft")


@contextmanager
def hosts(
    folder: Path, count: int, root: str, devices: int, until: str = STAGES[-1], share: bool = False
) -> Generator[list[subprocess.Popen[str]]]:
    """A job of several processes, each with a cache of its own below the folder, or with the first one's."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    job = {"LIFECYCLE_COORDINATOR": f"127.0.0.1:{free_port()}", "LIFECYCLE_NUM_PROCESSES": str(count)}
    words = ["run", str(CONFIG), "--until", until, f"root={root}", "mesh.fsdp=4"]
    started = []
    for index in range(count):
        cache = folder / ("0" if share else str(index))
        own = {"LIFECYCLE_PROCESS_ID": str(index), "XDG_CACHE_HOME": str(cache), "XLA_FLAGS": flags}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", "from lifecycle.cli.main import main; main()", *words],
                env=os.environ | job | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def finish(started: list[subprocess.Popen[str]]) -> str:
    """What the first process prints of a job that ends well."""
    ended = [process.communicate(timeout=LIMIT_S) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(error for _, error in ended)
    return ended[0][0]


def versions(folder: Path) -> dict[str, str]:
    """The content of each training stage's artifact in a run's folder."""
    found = {}
    for stage in STAGES:
        (artifact,) = folder.glob(f"{stage}-*[0-9a-f]")
        found[stage] = json.loads((artifact / MANIFEST).read_text())["content_hash"]
    return found


class AwayOnce(Store):
    """Away from process 1 while the second save is uploaded."""

    def upload(self, file: Path, name: str) -> None:
        if os.environ["LIFECYCLE_PROCESS_ID"] == "1" and "/4" in self.url:
            raise StoreError(f"{self.url}: no answer")
        super().upload(file, name)


def train(out: Path, url: str) -> None:
    """One process's part of a job whose second save, of step 4, fails in process 1."""
    settings = TinyRun(steps=8, checkpoint_every=2, mesh={"fsdp": 2})
    job = tiny_job(out / os.environ["LIFECYCLE_PROCESS_ID"], settings)
    stats = run_job(replace(job, to=Destination(AwayOnce(url), lambda: None)), Printed())
    print("ENDED", stats["params_hash"], flush=True)


class KillSaved(KillAll):
    """Kills this process once the store has the durable checkpoint that was begun before."""

    def __init__(self, step: int | None, disk: Path, store: Store) -> None:
        super().__init__(step, disk)
        self._store = store

    def after_step(self, run: TrainingRun) -> None:
        if run.step == self._step and run.step > 5:
            wait_until(lambda: f"{CHECKPOINTS}/5/files.json" in self._store.list())
        super().after_step(run)


def train_locally(out: Path, url: str, kill_at: str | None = None) -> None:
    """One process's part of a job of two replicas that saves every second step on its host's disk too."""
    host = out / os.environ["LIFECYCLE_PROCESS_ID"]
    local = {"local": {"folder": str(host / "local"), "every": 2}}
    job = tiny_job(host / "run", TinyRun(steps=8, checkpoint_every=5, mesh={"replica": 2}, checkpoint=local))
    job = replace(job, to=Destination(store := Store(url), lambda: None))
    stats = run_job(job, Printed(), [KillSaved(int(kill_at) if kill_at else None, host / "local", store)])
    print("ENDED", stats["params_hash"], flush=True)


PROCESS = """
import sys
from pathlib import Path
from lifecycle.core import distributed
distributed.start()
from tests.multidevice import test_hosts_apart
getattr(test_hosts_apart, sys.argv[2])(Path(sys.argv[1]), *sys.argv[3:])
"""


def said(out: Path, function: str, *words: str, status: int = 0) -> list[list[str]]:
    """The notes of each process, and how it ended."""
    outputs = run_processes([sys.executable, "-c", PROCESS, str(out), function, *words], 2, devices=1, status=status)
    return [[line for line in text.splitlines() if line.startswith(("NOTE", "ENDED"))] for text in outputs]


@pytest.mark.parametrize("kill_at", ["5", "7"])
def test_a_host_that_comes_back_empty_takes_what_another_has_on_its_disk(tmp_path: Path, s3: str, kill_at: str) -> None:
    """The first host, on which the run's own folder is too. The store has no checkpoint yet, or an older one."""
    url = f"{s3}/local-{kill_at}/stage"
    expected = said(tmp_path / "whole", "train_locally", f"{s3}/whole-{kill_at}/stage")[0][-1]
    said(tmp_path, "train_locally", url, kill_at, status=-signal.SIGKILL)
    shutil.rmtree(tmp_path / "0")
    for lines in said(tmp_path, "train_locally", url):
        assert f"resuming from the local checkpoint of step {int(kill_at) - 1}" in lines[0] and lines[-1] == expected
    assert {name.split("/")[1] for name in Store(url).list("checkpoints")} == {RUN_ID, "5", "8"}


def test_a_process_that_does_not_reach_the_store_ends_the_save_of_all_and_the_job_goes_on(
    tmp_path: Path, bucket: str
) -> None:
    """Step 6 is saved if the failure was still unknown when it was due."""
    url = f"{bucket}/away/stage"
    told = said(tmp_path, "train", url)
    for note, *_, ended in told:
        assert "training goes on unsaved" in note and "the checkpoint of step 4 could not be written" in note
        assert "/4: no answer" in note and ended == told[0][-1]
    names = Store(url).list("checkpoints")
    saved = {name.split("/")[1] for name in names}
    assert saved in ({"2", "8"}, {"6", "8"})  # nothing of the failed one is left
    for process in ("0", "1"):
        assert not (tmp_path / process / "checkpoints" / "staging" / process).exists()


def test_hosts_that_were_killed_come_back_as_others_and_end_with_the_same_weights(tmp_path: Path, bucket: str) -> None:
    with hosts(tmp_path / "shared", 2, str(tmp_path / "disk"), devices=2) as started:
        finish(started)
    store = Store(f"{bucket}/apart/debug")
    with hosts(tmp_path / "first", 2, f"{bucket}/apart", devices=2) as started:
        wait_until(lambda: any(name.endswith("checkpoints/15/files.json") for name in store.list()))
        for process in started:
            process.send_signal(signal.SIGKILL)
    shutil.rmtree(tmp_path / "first")
    with hosts(tmp_path / "second", 4, f"{bucket}/apart", devices=1) as started:
        assert "each host fetches what it needs" in finish(started)
    here = tmp_path / "second" / "0" / "lifecycle" / "runs" / bucket.replace("://", "/") / "apart" / "debug"
    assert versions(here) == versions(tmp_path / "disk" / "debug")
    names = store.list()
    assert not [name for name in names if f"/{SCRATCH}/" in name]
    sessions = next(here.glob("pretrain-*[0-9a-f]")) / "sessions.jsonl"
    assert [json.loads(line)["processes"] for line in sessions.read_text().splitlines()] == [2, 4]
    with hosts(tmp_path / "third", 2, f"{bucket}/apart", devices=2) as started:  # it is up to date: nothing runs
        assert "each host fetches" in finish(started)
    assert store.list().keys() - {"lease.json", "lease.clock"} == names.keys() - {"lease.json", "lease.clock"}


def test_hosts_with_one_cache_go_on_elsewhere_with_the_files_that_the_stage_opens(tmp_path: Path, s3: str) -> None:
    root = f"{s3}/shared"
    with hosts(tmp_path / "first", 2, root, devices=2, until="pretrain", share=True) as started:
        assert "each host fetches" not in finish(started)
    with hosts(tmp_path / "second", 2, root, devices=2, share=True) as started:
        assert "each host fetches" not in finish(started)
    here = tmp_path / "second" / "0" / "lifecycle" / "runs" / root.replace("://", "/") / "debug"
    made = {path.name.rpartition("-")[0]: path for path in here.iterdir() if path.is_dir()}
    assert sorted(made) == ["documents", "pretrain", "rows", "sft", "tokenizer", "tokens"]  # and not what they are from
    assert {path.name.partition("-")[0] for path in made["documents"].iterdir()} == {"kept", "heldout"}
    checkpoints = made["pretrain"] / CHECKPOINTS
    assert [path.name for path in (checkpoints / "25").iterdir()] == ["files.json"]
    assert (checkpoints / "30" / "params").is_dir() and not (made["pretrain"] / "manifest.json").exists()
