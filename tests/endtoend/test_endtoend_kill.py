"""`kill -9` at any moment, the same command again: it goes on, the weights bit-equal to an undisturbed run's."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from command_line import MEASURED, Debug

from lifecycle.core.runlog import read_log
from lifecycle.testing.waiting import LIMIT_S, wait_until

POLL_S = 0.005
# A moment in each stage, in the order in which a run meets them: the first file that matches says it has come.
MOMENTS = (
    "tagging-*.partial",
    "documents-*.partial",
    "pretrain-*.partial/checkpoints/10/files.json",
    "pretrain-*.partial/checkpoints/15.orbax-checkpoint-tmp*",
    "pretrain-*.partial/checkpoints/30",
    "sft-*.partial/checkpoints/6",
    "prefer-*.partial/reference-*.npz",
    "prefer-*.partial/checkpoints/4.orbax-checkpoint-tmp*",
    "evaluate-prefer-*.partial",
    "report-*.partial",
)
SAME = ("tagging", "documents", "tokenizer", "tokens", "rows", "pretrain", "sft", "prefer", "export")
UNTIL_SFT = SAME[: SAME.index("sft") + 1]


def kill_when(process: subprocess.Popen[str], has_come: Callable[[], bool]) -> bool:
    """Kills the process at that moment; False if it ended before."""
    wait_until(lambda: has_come() or process.poll() is not None, POLL_S)
    if process.poll() is not None:
        return False
    process.kill()
    process.wait()
    return True


def wait_for_group(pid: int) -> None:
    """Until the worker processes of a killed run have ended too."""

    def has_ended() -> bool:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        return False

    try:
        wait_until(has_ended)
    except AssertionError:
        os.killpg(pid, signal.SIGKILL)
        raise


def hashes(run: Debug, stages: Iterable[str] = SAME) -> dict[str, str]:
    return {stage: run.artifact(stage).content_hash for stage in stages}


def curve(run: Debug, stage: str) -> list[tuple[int, float]]:
    """What was measured, by step."""
    records = read_log(run.artifact(stage).path / "metrics.jsonl")
    names = ("loss", "heldout_loss", "heldout_bits_per_byte", "choice/accuracy", "choice/accuracy_per_byte")
    return [(record["step"], record[name]) for record in records for name in names if name in record]


@pytest.mark.long
def test_killed_in_one_stage_after_the_other_the_weights_are_bit_equal(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.beside(tmp_path, "data.workers=2")
    for moment in MOMENTS:
        process = run.begin("run", MEASURED)
        came = kill_when(process, lambda moment=moment: any(run.folder.glob(moment)))
        wait_for_group(process.pid)
        assert came, f"the run ended before {moment}"
    run.succeed("run", MEASURED)
    assert hashes(run) == hashes(undisturbed)
    assert not list(run.folder.glob("*.partial"))
    for stage in ("pretrain", "sft", "prefer"):  # no step twice, none left out, and the same numbers
        assert curve(run, stage) == curve(undisturbed, stage)


@pytest.mark.long
def test_killed_at_random_moments_the_weights_are_bit_equal(undisturbed: Debug, tmp_path: Path) -> None:
    run, draw = undisturbed.beside(tmp_path), random.Random(1)
    for patience_s in (3, 8, 15):
        process = run.begin("run", "--until=sft")
        moment = time.monotonic() + draw.uniform(0.5, patience_s)
        if not kill_when(process, lambda moment=moment: time.monotonic() > moment):
            break
        wait_for_group(process.pid)
    run.succeed("run", "--until=sft")
    assert hashes(run, UNTIL_SFT) == hashes(undisturbed, UNTIL_SFT)


@pytest.mark.long  # its parts are in the gate: `test_a_run_killed_twice_...` of the loop, `test_multidevice_resume.py`
def test_killed_on_two_devices_a_run_goes_on_on_four(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.copy(tmp_path, "tagging", "documents", "tokenizer", "tokens")
    process = run.begin("run", "--until=pretrain", "mesh.fsdp=2", devices=2)
    came = kill_when(process, lambda: any(run.folder.glob("pretrain-*.partial/checkpoints/15")))
    wait_for_group(process.pid)
    assert came, "the stage ended before it had saved step 15"
    run.succeed("run", "--until=pretrain", "mesh.fsdp=4", devices=4)
    steps, losses = zip(*curve(run, "pretrain"), strict=True)
    expected_steps, expected = zip(*curve(undisturbed, "pretrain"), strict=True)
    assert steps == expected_steps
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    first, second = run.artifact("pretrain").manifest.how
    assert (first["mesh"]["fsdp"], second["mesh"]["fsdp"]) == (2, 4)
    assert (first["from_step"], second["to_step"]) == (0, 30) and first["to_step"] == second["from_step"] >= 15


def test_a_run_folder_has_one_owner(undisturbed: Debug, tmp_path: Path) -> None:
    run = undisturbed.beside(tmp_path)
    process = run.begin("run")
    wait_until(lambda: any(run.folder.glob("tagging-*")), POLL_S)
    process.send_signal(signal.SIGSTOP)
    message = run.fail("run")
    assert f"{run.folder}: in use by process " in message and "name=" in message
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130  # Ctrl-C: stopped, and the same command goes on
