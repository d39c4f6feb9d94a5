"""`launch/slurm.sbatch` with programs that stand in for Slurm's; `tests/slurm` drives it on a real one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tpu_vms import SCRIPTS, program

from lifecycle.core.stopping import RESTART_STATUS

NODES = 8_000  # whose names are more than a pipe holds
SCONTROL = """#!/bin/sh
case "$*" in
  "show hostnames"*) seq -f node%.0f $NODES ;;
  *"show node node1") echo "NodeName=node1 NodeAddr=10.0.0.1 State=IDLE" ;;
  *) echo "$@" >> calls ;;
esac
"""
# The check is answered the first time from $ANSWERS_AT on; the job's own step fails as `failure` says.
SRUN = """#!/bin/sh
case "$*" in
  *-nodes.log*)
    echo x >> checks
    [ "$(wc -l < checks)" -lt "$ANSWERS_AT" ] || seq -f "node%.0f: healthy" $NODES > slurm-7-nodes.log
    case "$*" in *--overlap*) ;; *) rm slurm-7-nodes.log ;; esac ;;
  *) echo "$LIFECYCLE_COORDINATOR" > coordinator; cat failure >&2; exit 143 ;;
esac
"""


def start(folder: Path, nodes: int = 2, answers_at: int = 1) -> subprocess.CompletedProcess[str]:
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("squeue", "#!/bin/sh\n")):
        program(folder / "bin" / name, text)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "nodes", "SLURM_JOB_NUM_NODES": str(nodes)}
    given = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "NODES": str(nodes), "ANSWERS_AT": str(answers_at)}
    environment = os.environ | slurm | given
    command = ["bash", SCRIPTS / "slurm.sbatch", "true"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", SCRIPTS / "slurm.sbatch"], check=True)


def test_the_first_failure_decides_however_many_follow(tmp_path: Path) -> None:
    others = "".join(f"srun: error: node{n}: task {n}: Killed\n" for n in range(NODES))
    (tmp_path / "failure").write_text(f"srun: error: node2: task 1: Exited with exit code 3\n{others}")
    done = start(tmp_path, nodes=NODES)
    assert done.returncode == 3, done.stderr
    assert "first to fail: node2: task 1: Exited with exit code 3\n" in done.stdout
    assert (tmp_path / "coordinator").read_text().startswith("10.0.0.1:")


@pytest.mark.parametrize(("answers_at", "checks"), [(2, 2), (9, 2)])
def test_a_check_without_answers_is_repeated_and_then_the_job_is_queued_again(
    answers_at: int, checks: int, tmp_path: Path
) -> None:
    (tmp_path / "failure").write_text("srun: error: node1: task 0: Exited with exit code 3\n")
    done = start(tmp_path, answers_at=answers_at)
    assert len((tmp_path / "checks").read_text().splitlines()) == checks
    if answers_at == 2:
        assert done.returncode == 3 and not (tmp_path / "calls").exists()
    else:
        assert done.returncode == RESTART_STATUS and "queued again: no node has answered the check" in done.stdout
        assert (tmp_path / "calls").read_text() == "requeue 7\n"  # and no node is left out
