"""`launch/local.sh`: several processes of one job on one machine, and the same model out of them as out of one."""

import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import MEASURED, REPOSITORY, Debug, environment

from lifecycle.core.config import load_config
from lifecycle.core.runlog import read_log
from lifecycle.model.params import abstract_params
from lifecycle.stages.config import RunConfig
from lifecycle.testing.waiting import LIMIT_S
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.weights.names import unstack

LAUNCH = str(REPOSITORY / "launch" / "local.sh")


def trained(run: Debug, stage: str) -> dict[str, np.ndarray]:
    """A stage's final weights by canonical name."""
    like = abstract_params(load_config(RunConfig, run.config, run.settings).model)
    return unstack(load_params(run.artifact(stage).path / "checkpoints", like))


def launch(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LAUNCH, *command], env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_each_line_says_which_process_wrote_it_and_all_know_of_each_other() -> None:
    process = launch("3", "bash", "-c", "echo $LIFECYCLE_COORDINATOR $LIFECYCLE_NUM_PROCESSES $LIFECYCLE_PROCESS_ID")
    lines = sorted(process.communicate(timeout=LIMIT_S)[0].splitlines())
    address = lines[0].split()[1]
    assert lines == [f"[{index}] {address} 3 {index}" for index in range(3)]
    assert address.startswith("127.0.0.1:") and process.returncode == 0


def test_the_first_failure_ends_the_others_and_is_the_exit_status() -> None:
    process = launch("2", "bash", "-c", "echo here; [ $LIFECYCLE_PROCESS_ID = 0 ] || exit 7; exec sleep infinity")
    output = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 7
    assert "[1] here" in output


def test_a_lost_process_restarts_all_of_them_and_the_last_failure_counts(tmp_path: Path) -> None:
    """Both count their attempts; in the first, process 1 is lost once process 0 has begun."""
    lost = (
        f"cd {tmp_path}; echo x >> $LIFECYCLE_PROCESS_ID; [ $(wc -l < $LIFECYCLE_PROCESS_ID) = 2 ] && exit 0; "
        "[ $LIFECYCLE_PROCESS_ID = 0 ] && exec sleep infinity; until [ -s 0 ]; do sleep 0.05; done; kill -9 $$"
    )
    process = launch("--restarts", "3", "2", "bash", "-c", lost)
    output = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, output
    assert "process 1 ended with status 137; restart 1 of 3" in output and "restart 2" not in output
    process = launch("--restarts", "2", "2", "bash", "-c", "exit 7")
    output = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 7 and output.count("; restart ") == 2


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            "seed=$LIFECYCLE_PROCESS_ID",
            r"process 1 on \S+ has config \w+, process 0 on \S+ has \w+; all proc",
        ),
        ("$([ $LIFECYCLE_PROCESS_ID = 0 ] || echo sed=1)", r"process 1 on \S+: \S+: sed: no such setting"),
    ],
)
def test_processes_that_cannot_work_together_say_why_once(fresh: Debug, setting: str, problem: str) -> None:
    process = launch("2", "bash", "-c", f"exec {' '.join(fresh.command('run'))} {setting}")
    lines = process.communicate(timeout=LIMIT_S)[0].splitlines()
    output = " ".join(" ".join(line.removeprefix("[0] ") for line in lines).split())
    assert process.returncode == 1 and output.count("lifecycle: ") == 1 and "[1]" not in output, output
    assert re.search(problem, output) and "Traceback" not in output, output


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_every_process(number: signal.Signals, status: int) -> None:
    catch = f"trap 'echo caught; exit 0' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.1; done"
    process = launch("2", "bash", "-c", catch)
    assert process.stdout is not None
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(number)
    assert {"[0] caught", "[1] caught"} <= set(process.communicate(timeout=LIMIT_S)[0].splitlines())
    assert process.returncode == status


@pytest.mark.parametrize("arguments", [(), ("2",), ("none", "true"), ("0", "true"), ("--restarts", "x", "2", "true")])
def test_a_wrong_call_is_told_the_right_one(arguments: tuple[str, ...]) -> None:
    process = launch(*arguments)
    assert "usage: launch/local.sh [--restarts N] COUNT COMMAND" in process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 2


def curve(run: Debug, stage: str) -> dict[str, list[float]]:
    """Every measured number of a training stage, in the order of the steps."""
    found: dict[str, list[float]] = {}
    for record in read_log(run.artifact(stage).path / "metrics.jsonl"):
        for name, value in record.items():
            if name not in ("tokens_per_s", "step_time", "cpu_s", "compile_s", "save_stall_s"):
                found.setdefault(name, []).append(value)
    return found


@pytest.mark.long
@pytest.mark.parametrize("stages", [("pretrain",), ("pretrain", "sft", "prefer")], ids=len)
def test_two_processes_train_like_one(undisturbed: Debug, tmp_path: Path, stages: tuple[str, ...]) -> None:
    two = undisturbed.copy(tmp_path, "tagging", "documents", "tokenizer", "tokens", "rows")
    settings = ("mesh.fsdp=2", "evaluate.after=[prefer]", MEASURED)
    until = () if len(stages) > 1 else ("--until", *stages)  # else to the end: the others wait where one works alone
    process = launch("2", *two.command("run", *settings, *until))
    output = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, output
    for stage in stages:
        here, there = curve(undisturbed, stage), curve(two, stage)
        assert here.keys() == there.keys()
        for name in here:
            np.testing.assert_allclose(there[name], here[name], rtol=1e-5, atol=1e-5, err_msg=f"{stage} {name}")
        weights, others = (trained(run, stage) for run in (undisturbed, two))
        for name, array in weights.items():
            np.testing.assert_allclose(others[name], array, rtol=1e-5, atol=1e-5, err_msg=f"{stage} {name}")
    assert until or two.artifact("register").stats["promoted"]
