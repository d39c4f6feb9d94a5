"""`launch/slurm.sbatch` on a real Slurm: two nodes on this machine, started for this file by `cluster.sh`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from lifecycle.core.environments import Place
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.core.stopping import LOST_STATUS, RESTART_STATUS
from lifecycle.testing.waiting import wait_until
from tests.endtoend.command_line import REPOSITORY, Debug, environment

CLUSTER = Path(__file__).with_name("cluster.sh")
SCRIPT = REPOSITORY / "launch" / "slurm.sbatch"
STEPS = 200
SETTINGS = (
    "mesh.fsdp=2", f"train.pretrain.steps={STEPS}", "train.pretrain.checkpoint.every=30", "train.pretrain.log_every=5",
    f"train.pretrain.eval_every={STEPS}",
)  # fmt: skip
PATH = f"{os.environ['PATH']}:/usr/sbin"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="no Slurm here"
    ),
    pytest.mark.skipif(os.getuid() != 0, reason="the cluster's daemons start jobs, as root"),
]


@dataclass(frozen=True)
class Job:
    """A batch job of `launch/slurm.sbatch` in its own folder; what it prints stays there."""

    id: int
    folder: Path
    slurm: dict[str, str]

    def call(self, *command: str) -> str:
        return subprocess.run(command, env=self.slurm, check=True, capture_output=True, text=True).stdout

    def fact(self, name: str) -> str:
        """A field of `scontrol show job`."""
        found = re.search(rf"\b{name}=(\S+)", self.call("scontrol", "--oneliner", "show", "job", str(self.id)))
        assert found is not None
        return found.group(1)

    def wait(self, *names: str) -> None:
        """Waits for a state; fails at once if the job has ended in another one."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_until(lambda: self.fact("JobState") in (*names, *ends), poll_s=0.2)
        assert self.fact("JobState") in names, self.log()

    def log(self) -> str:
        """What the script printed, in all of the job's attempts."""
        return (self.folder / f"slurm-{self.id}.out").read_text()

    def processes(self, index: int) -> str:
        """What a process printed."""
        return (self.folder / f"slurm-{self.id}-{index}.log").read_text()


@dataclass(frozen=True)
class Cluster:
    variables: dict[str, str]

    def submit(self, folder: Path, command: Sequence[str], *options: str) -> Job:
        folder.mkdir(exist_ok=True)
        arguments = ["sbatch", "--parsable", "--nodes=2", *options, str(SCRIPT), *command]
        called = subprocess.run(
            arguments, cwd=folder, env=environment() | self.variables, check=True, capture_output=True, text=True
        )
        return Job(int(called.stdout), folder, os.environ | self.variables)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([CLUSTER, "start", folder], check=True)
        yield Cluster({"SLURM_CONF": str(folder / "slurm.conf")})
    finally:
        subprocess.run([CLUSTER, "stop", folder], check=True)


def program(folder: Path, *cases: str) -> list[str]:
    """A command for each process: it counts its attempts in files, and does what `cases` say of `$n`, its attempt."""
    lines = ["count=$SLURM_PROCID.count; echo x >> $count; n=$(wc -l < $count); echo attempt $n", *cases, "echo done"]
    folder.mkdir()
    (folder / "program.sh").write_text("\n".join(lines) + "\n")
    return ["bash", "program.sh"]


def test_an_error_of_one_process_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm's own status is that of the process that it killed in answer."""
    command = program(tmp_path / "job", "[ $SLURM_PROCID = 1 ] && exit 3", "exec sleep 1000")
    job = cluster.submit(tmp_path / "job", command)
    job.wait("FAILED")
    assert job.fact("ExitCode") == "3:0" and job.fact("Restarts") == "0"
    assert "first to fail: node2: task 1: Exited with exit code 3" in job.log()
    assert job.log().count("attempt") == 2 and "queued again" not in job.log()


def test_a_lost_process_starts_all_again_in_the_same_allocation(cluster: Cluster, tmp_path: Path) -> None:
    command = program(tmp_path / "job", "[ $n = 2 ] || { [ $SLURM_PROCID = 1 ] && kill -9 $$; exec sleep 1000; }")
    job = cluster.submit(tmp_path / "job", command)
    job.wait("COMPLETED")
    assert "first to fail: node2: task 1: Killed" in job.log() and job.fact("Restarts") == "0"
    assert all(job.processes(index).splitlines()[-2:] == ["attempt 2", "done"] for index in (0, 1))


def test_a_process_that_has_lost_another_is_no_error(cluster: Cluster, tmp_path: Path) -> None:
    """It may be the first to end."""
    command = program(tmp_path / "job", f"[ $n = 2 ] || exit {LOST_STATUS}")
    job = cluster.submit(tmp_path / "job", command)
    job.wait("COMPLETED")
    assert f"Exited with exit code {LOST_STATUS}" in job.log() and job.fact("Restarts") == "0"


def test_what_is_lost_again_and_again_fails(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path / "job", program(tmp_path / "job", "kill -9 $$"), "--export=ALL,MAX_RESTARTS=2")
    job.wait("FAILED")
    assert "failed with status 69 in attempt 3" in job.log()


def test_processes_that_ask_for_a_restart_are_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path / "job", program(tmp_path / "job", f"[ $n = 2 ] || exit {RESTART_STATUS}"))
    job.wait("COMPLETED")
    assert job.fact("Restarts") == "1" and "queued again: the processes have stopped with status 75" in job.log()


def test_a_host_that_does_not_come_is_named_within_a_minute(cluster: Cluster, tmp_path: Path) -> None:
    run = " ".join(Debug(tmp_path / "runs").command("run"))
    command = program(tmp_path / "job", "[ $SLURM_PROCID = 0 ] || exec sleep 1000", f"exec {run}")
    job = cluster.submit(tmp_path / "job", command, "--export=ALL,MAX_RESTARTS=0", "--time=30")
    job.wait("FAILED")
    said = " ".join(job.processes(0).split())
    assert re.search(r"1 of 2 processes did not come to 127\.0\.0\.1:\d+: 1 on node2; here are process 0 on", said), (
        said
    )
    assert f"first to fail: node1: task 0: Exited with exit code {LOST_STATUS}" in job.log()


PLACE = "from lifecycle.core.environments import find_place; print(find_place())"


def test_every_task_knows_its_place(cluster: Cluster, tmp_path: Path) -> None:
    """Two on each node, by the script; by `srun` alone, outside of a batch script, also where a name must do."""
    job = cluster.submit(tmp_path / "job", [sys.executable, "-c", PLACE], "--ntasks-per-node=2")
    job.wait("COMPLETED")
    told = [eval(job.processes(index), {"Place": Place}) for index in range(4)]
    (address,) = {place.address for place in told}
    assert told == [Place(address, 4, index, "slurm") for index in range(4)] and address.startswith("127.0.0.1:")
    for options, host in ((["--nodes=2"], "node1"), (["--nodes=1", "--ntasks=2"], "127.0.0.1")):
        output = job.call("srun", *options, "--chdir", str(REPOSITORY), sys.executable, "-c", PLACE)
        told = [eval(line, {"Place": Place}) for line in output.splitlines()]
        assert sorted(place.index for place in told) == [0, 1] and {place.count for place in told} == {2}
        assert {place.address.rpartition(":")[0] for place in told} == {host}
    alone = job.call("srun", "--ntasks=1", "--chdir", str(REPOSITORY), sys.executable, "-c", PLACE)
    assert alone == "None\n"


WAITS = "trap 'echo saved; exit 75' TERM; touch $SLURM_PROCID.ready; while [ $n = 1 ]; do sleep 0.1; done"


def test_the_user_stops_a_job_for_now_or_for_good(cluster: Cluster, tmp_path: Path) -> None:
    for number, arguments in enumerate((["--batch", "--signal=TERM"], [])):
        folder = tmp_path / str(number)
        job = cluster.submit(folder, program(folder, WAITS))
        wait_until(lambda folder=folder: len(list(folder.glob("*.ready"))) == 2)
        job.call("scancel", *arguments, str(job.id))
        job.wait("COMPLETED" if arguments else "CANCELLED")
        if not arguments:
            time.sleep(1)  # a script that would queue it again had done so
        assert job.fact("Restarts") == ("1" if arguments else "0")
        assert ("queued again" if arguments else "cancelled") in job.log()
        assert all("saved" in job.processes(index) for index in (0, 1))


def test_a_node_that_cannot_write_is_named_and_left_out(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path / "job", program(tmp_path / "job"), "--hold")
    (tmp_path / "job" / f"slurm-{job.id}-node2.probe").mkdir()
    job.call("scontrol", "release", str(job.id))
    wait_until(lambda: job.fact("ExcNodeList") == "node2", poll_s=0.2)
    job.wait("PENDING")
    job.call("scancel", str(job.id))
    assert f"node node2: cannot write to {tmp_path / 'job'}" in job.log()
    assert not list((tmp_path / "job").glob("*.count"))


def test_a_job_that_loses_a_node_is_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm does that itself; the script on the other node must neither end the job nor queue it a second time."""
    command = program(tmp_path / "job", "touch $SLURM_PROCID.ready; [ $n = 2 ] || exec sleep 1000")
    job = cluster.submit(tmp_path / "job", command)
    wait_until(lambda: len(list((tmp_path / "job").glob("*.ready"))) == 2)
    job.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    try:
        job.wait("PENDING")
        assert job.fact("Restarts") == "1" and job.fact("ExcNodeList") == "(null)"
    finally:
        job.call("scontrol", "update", "NodeName=node2", "State=RESUME")
    job.wait("COMPLETED")
    assert job.fact("Restarts") == "1"
    assert all(job.processes(index).splitlines()[-2:] == ["attempt 2", "done"] for index in (0, 1))


def test_a_command_that_no_node_has_fails(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path / "job", ["there-is-no-such-command"])
    job.wait("FAILED")
    assert "node node1: has no command there-is-no-such-command" in job.log() and "no node is healthy" in job.log()


def test_a_run_goes_on_after_its_time_limit_and_a_kill(cluster: Cluster, tmp_path: Path) -> None:
    """Its weights are those of a run that nothing disturbs, bit by bit."""
    calm, disturbed = (Debug(tmp_path / name, settings=SETTINGS) for name in ("calm", "disturbed"))
    calm.succeed("run", "--until", "tokens", devices=2)
    shutil.copytree(calm.root, disturbed.root)
    job = cluster.submit(tmp_path / "slurm", calm.command("run", "--until", "pretrain"), "--time=30")
    job.wait("COMPLETED")
    assert "Traceback" not in job.processes(0) and "pretrain" not in job.processes(1)  # one process speaks

    command = disturbed.command("run", "--until", "pretrain")
    job = cluster.submit(tmp_path / "slurm", command, "--time=30", "--signal=B:TERM@50")
    wait_until(lambda: newest_step(disturbed) >= 20, poll_s=0.2)
    reach_time_limit(job)
    wait_until(lambda: "queued again" in job.log(), poll_s=0.2)
    (stopped,) = (int(step) for step in re.findall(rf"stopped after step (\d+) of {STEPS}, which is", job.processes(0)))
    assert 20 <= stopped < STEPS
    job.wait("PENDING")
    job.call("scontrol", "update", f"JobId={job.id}", "TimeLimit=30")
    wait_until(lambda: newest_step(disturbed) > stopped, poll_s=0.2)
    os.kill(process_of(job, 1), signal.SIGKILL)
    job.wait("COMPLETED")
    assert job.fact("Restarts") == "1" and "first to fail: node" in job.log()
    assert "Exited with exit code 1" not in job.log()  # process 0 has lost its neighbour, or is killed for it
    sessions = [how["from_step"] for how in disturbed.artifact("pretrain").manifest.how]
    assert sessions[:2] == [0, stopped], sessions
    weights = [run.artifact("pretrain").stats["params_hash"] for run in (calm, disturbed)]
    assert weights[0] == weights[1]


def reach_time_limit(job: Job) -> None:
    """Lowers the job's limit to the next minute, and holds its processes still until Slurm's notice, which it sends
    within half a minute of the time that `--signal` names: the job has as many steps left however fast they are."""
    held = [process_of(job, index) for index in (0, 1)]
    for process in held:
        os.kill(process, signal.SIGSTOP)
    minutes, seconds = (int(part) for part in job.fact("RunTime").split(":")[1:])
    job.call("scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes + 1 + (seconds > 20)}")
    wait_until(lambda: "asked to stop" in job.log(), poll_s=0.2)
    for process in held:
        os.kill(process, signal.SIGCONT)


def newest_step(run: Debug) -> int:
    """The last logged step of the training stage, whose folder is still a draft."""
    logs = list(run.folder.glob(f"pretrain-*/{METRICS}"))
    return max((record["step"] for log in logs for record in read_log(log) if "loss" in record), default=0)


def process_of(job: Job, index: int) -> int:
    """The process id of a task of the job's running step: its environment says which it is."""
    wanted = {f"SLURM_JOB_ID={job.id}", f"SLURM_PROCID={index}", "SLURM_STEP_NUM_TASKS=2"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = set((folder / "environ").read_text().split("\0"))
            words = (folder / "cmdline").read_text()
        except OSError:  # it has ended
            continue
        if wanted <= variables and "pretrain" in words:
            return int(folder.name)
    raise AssertionError(f"no process {index} of job {job.id}")
