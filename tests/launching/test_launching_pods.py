"""A manifest's pods as processes of this machine: they find each other by the names that JobSet's service publishes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import process

from lifecycle.core.runlog import METRICS, read_log
from lifecycle.core.stopping import RESTART_STATUS
from lifecycle.launching.job import Job
from lifecycle.launching.jobset import jobset
from lifecycle.planning.topology import parse_topology
from lifecycle.testing.waiting import LIMIT_S, wait_until

REPOSITORY = Path(__file__).parents[2]
NAMED = 'mount --bind "$0" /etc/hosts && exec "$@"'


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="needs root, and namespaces")
def test_two_slices_train_stop_and_go_on(tmp_path: Path) -> None:
    """One pod is asked to stop: both save and end with status 75, which the JobSet answers with a restart of both."""
    settings = ("--until", "pretrain", f"root={tmp_path}", "mesh.replica=2", "train.pretrain.steps=300")
    command = ("lifecycle", "run", "configs/debug.yaml", *settings)
    manifest = jobset(Job(name="job", image="i", command=command, topology=parse_topology("v6e:1x1*2")))
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 job-workers-0-0.job\n")

    def start(slice_index: int) -> subprocess.Popen[bytes]:
        words, variables = process(manifest, slice_index, 0)
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "XLA_FLAGS": ""}  # one device each
        return subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", NAMED, str(hosts), *words], env=os.environ | variables | path,
            cwd=REPOSITORY, stdout=(tmp_path / f"log-{slice_index}").open("ab"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def has_saved() -> bool:
        assert all(pod.poll() is None for pod in pods), (tmp_path / "log-0").read_text()
        return any(tmp_path.glob("debug/pretrain-*.partial/checkpoints/*"))

    pods = [start(0), start(1)]
    wait_until(has_saved, poll_s=0.05)
    pods[1].send_signal(signal.SIGTERM)
    assert [pod.wait(LIMIT_S) for pod in pods] == [RESTART_STATUS, RESTART_STATUS]
    pods = [start(0), start(1)]
    assert [pod.wait(LIMIT_S) for pod in pods] == [0, 0], (tmp_path / "log-0").read_text()
    (artifact,) = tmp_path.glob("debug/pretrain-*")
    assert (artifact / "manifest.json").exists()
    steps = [record["step"] for record in read_log(artifact / METRICS) if "loss" in record]
    assert steps == sorted(set(steps)) and steps[-1] == 300
