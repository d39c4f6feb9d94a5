"""SIGKILL wherever a run may be, also twenty times in a row: the same bits at the end, and nothing left behind."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.testing.jobs import TinyRun, command, tiny_job
from lifecycle.testing.waiting import LIMIT_S, wait_until
from lifecycle.training.checkpoints.integrity import damage, steps_in
from lifecycle.training.job import CHECKPOINTS
from lifecycle.training.loop import run_job
from tests.rl.policy_job import command as policy_command
from tests.rl.policy_job import run_policy

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
LAUNCH = str(ROOT / "launch" / "local.sh")
KILLS, KILLS_OF_JOB = 20, 5
RUN = TinyRun(steps=300, checkpoint_every=3)
JOB = TinyRun(steps=300, checkpoint_every=3, mesh={"fsdp": 2})
MOMENTS = ("anywhere in the start", "compiling", "between steps", "while a checkpoint is written")


def records(out: Path) -> int:
    path = out / METRICS
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def moment(name: str, out: Path, draw: random.Random) -> Callable[[], bool]:
    """Whether the moment has come, in a process that starts now."""
    started, lines, wait_s = time.monotonic(), records(out), draw.uniform(0, 0.1)
    if name == "anywhere in the start":
        limit = draw.uniform(0, 10)
        return lambda: time.monotonic() - started > limit
    if name == "compiling":  # the log is opened just before
        inode = (out / METRICS).stat().st_ino if (out / METRICS).exists() else 0
        return lambda: (out / METRICS).exists() and (out / METRICS).stat().st_ino != inode
    if name == "between steps":
        wanted = draw.randint(3, 20)
        return lambda: records(out) > lines + wanted
    has_begun = lambda: any((out / CHECKPOINTS).glob("*.orbax-checkpoint-tmp*"))  # noqa: E731
    return lambda: records(out) > lines and has_begun() and time.sleep(wait_s) is None


def names(folder: Path) -> list[str]:
    """All files and folders of a run, without those whose names are drawn."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "ocdbt" not in str(path))


def assert_same(out: Path, whole: Path, left: list[int]) -> None:
    lines = [[json.loads(line) for line in (folder / METRICS).read_text().splitlines()] for folder in (out, whole)]
    curves = [[(r["step"], r["loss"]) for r in of if "loss" in r] for of in lines]
    assert curves[0] == curves[1]
    found, expected = names(out), names(whole)
    print("entries of checkpoints/ after each kill:", left)
    print(f"{len(found)} files and folders at the end, {len(expected)} of the undisturbed run")
    assert {name.split("/")[1] for name in found if "/" in name} == {n.split("/")[1] for n in expected if "/" in n}
    assert max(left, default=0) <= RUN.train().checkpoint.keep + 3


def test_killed_twenty_times_in_a_row_the_weights_are_bit_equal(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    draw, whole, out, left = random.Random(seed), tmp_path / "whole", tmp_path / "killed", []
    expected = run_job(tiny_job(whole, RUN), Silent())
    for number in range(KILLS):
        name = MOMENTS[number % len(MOMENTS)] if number < len(MOMENTS) else draw.choice(MOMENTS)
        process = subprocess.Popen(command(out, RUN), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        has_come = moment(name, out, draw)
        wait_until(lambda has_come=has_come, process=process: has_come() or process.poll() is not None, 0.002)
        assert process.poll() is None, f"seed {seed}: ended before kill {number}, {name}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps = steps_in(out / CHECKPOINTS) if out.exists() else []
        print(f"seed {seed}: kill {number}, {name}, {records(out)} records, checkpoints {steps}")
        assert [damage(out / CHECKPOINTS / str(step)) for step in steps] == [None] * len(steps)
        left.append(len(list((out / CHECKPOINTS).glob("*"))))
    ended = subprocess.run(command(out, RUN), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    stats = json.loads(ended.stdout.splitlines()[-1])
    assert stats["params_hash"] == expected["params_hash"], f"seed {seed}"
    assert_same(out, whole, left)


MOVES = {"reference": "copy", "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.25}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}), "tr_dpo": ("dpo", MOVES), "orpo": ("orpo", {}), "cpo": ("cpo", {}), "kto": ("kto", {}),
    "reward_model": ("reward_model", {}), "process_reward_model": ("process_reward_model", {}),
    "sft": ("sft", {"neftune_noise_alpha": 5.0}), "adapter": ("sft", {"adapter": {"rank": 2}}),
    "base": ("dpo", {"adapter": {"rank": 2}, "reference": "base"}),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_that_is_killed_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    objective, settings = OBJECTIVES[name]
    run = TinyRun(objective=objective, settings=settings, steps=7, checkpoint_every=3)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    expected = run_job(tiny_job(whole, run), Silent())
    killed = subprocess.run(command(out, replace(run, kill_at=5, kill_after=3)), capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert steps_in(out / CHECKPOINTS) == [3]
    ended = subprocess.run(command(out, run), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["params_hash"] == expected["params_hash"]
    assert_same(out, whole, [])


POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("ppo", {"num_iterations": 2, "beta": 0.1, "group_size": 1, "prompts_per_step": 5}),
    "ahead": ("grpo", {"max_staleness": 1, "loss": "grpo"}),
}
KILLS_OF_POLICY = 4
OF_TIME = ("tokens_per_s", "step_time", "cpu_s", "generation_s", "reward_s", "compile_s", "save_stall_s")


def told(out: Path) -> dict[int, dict[str, Any]]:
    """What the log says of each step, but for times."""
    found: dict[int, dict[str, Any]] = {}
    for line in (out / METRICS).read_text().splitlines():
        record = json.loads(line)
        found.setdefault(record["step"], {}).update(record)
    return {step: {k: v for k, v in record.items() if k not in OF_TIME} for step, record in found.items()}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_is_killed_anywhere_ends_with_the_same_bits_and_completions(name: str, tmp_path: Path) -> None:
    """In sampling, scoring, updates and saves: the moments are random, each after two more steps at least."""
    kind, settings = POLICIES[name]
    settings = settings | {"steps": 24, "checkpoint": {"every": 3, "keep": 2}}
    whole, out = tmp_path / "whole", tmp_path / "killed"
    expected = run_policy(whole, kind, settings)
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    for number in range(KILLS_OF_POLICY):
        before = records(out)
        given = policy_command(out, kind, settings)
        process = subprocess.Popen(given, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = draw.randint(4, 8)  # two records of a step at least
        has_come = lambda before=before, wanted=wanted: records(out) >= before + wanted  # noqa: E731
        wait_until(lambda has_come=has_come, process=process: has_come() or process.poll() is not None, 0.002)
        time.sleep(draw.uniform(0, 0.2))
        assert process.poll() is None, f"seed {seed}: ended before kill {number}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"seed {seed}: kill {number}, {records(out)} records, checkpoints {steps_in(out / CHECKPOINTS)}")
    ended = subprocess.run(policy_command(out, kind, settings), cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["params_hash"] == expected["params_hash"], f"seed {seed}"
    assert told(out) == told(whole), f"seed {seed}"
    samples = [list(read_log(folder / "rollouts.jsonl")) for folder in (out, whole)]
    assert samples[0] == samples[1] and samples[0], f"seed {seed}"


def members(out: Path) -> list[int]:
    """The processes of the job, by what they were started with. The launcher has these words too, further on."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if arguments[2:4] == [b"lifecycle.testing.jobs", str(out).encode()]:
            found.append(int(path.parent.name))
    return sorted(found)


def test_a_job_that_loses_one_process_after_the_other_ends_with_the_same_bits(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    draw, whole, out, left = random.Random(seed), tmp_path / "whole", tmp_path / "killed", []
    expected = run_job(tiny_job(whole, JOB), Silent())
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    launched = subprocess.Popen(
        [LAUNCH, "--restarts", str(KILLS_OF_JOB), "2", *command(out, JOB)],
        env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    killed: set[int] = set()
    for number in range(KILLS_OF_JOB):
        name = draw.choice(MOMENTS[2:])
        before = frozenset(killed)
        wait_until(lambda before=before: len(set(members(out)) - before) == 2 or launched.poll() is not None)
        both, has_come = sorted(set(members(out)) - before), moment(name, out, draw)
        wait_until(lambda has_come=has_come: has_come() or launched.poll() is not None, 0.002)
        assert launched.poll() is None, f"seed {seed}: ended before kill {number}"
        os.kill(draw.choice(both), signal.SIGKILL)
        killed |= set(both)
        print(f"seed {seed}: kill {number}, {name}, checkpoints {steps_in(out / CHECKPOINTS)}")
        left.append(len(list((out / CHECKPOINTS).glob("*"))))
    output, errors = launched.communicate(timeout=LIMIT_S)
    assert launched.returncode == 0 and errors.count("; restart ") == KILLS_OF_JOB, errors
    told = [json.loads(line[4:]) for line in output.splitlines() if line.startswith("[0] {")]
    assert told[-1]["params_hash"] == expected["params_hash"], f"seed {seed}"
    assert_same(out, whole, left)
