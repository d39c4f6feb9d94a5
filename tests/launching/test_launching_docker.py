"""`launch/Dockerfile`: what its instructions promise, a linter, and (mark `long`) its steps for the CPU, executed."""

import fnmatch
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from dockerfile import build, instructions

from lifecycle.core.version import VERSION

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "launch" / "Dockerfile"
STEPS = instructions(DOCKERFILE)


def copied() -> list[str]:
    return [source for name, text in STEPS if name == "COPY" for source in text.split()[:-1]]


def test_only_what_is_copied_leaves_the_machine() -> None:
    rules = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(copied())
    assert all((REPOSITORY / source).exists() for source in copied())
    assert not any(fnmatch.fnmatch(source, rule) for source in copied() for rule in rules[1:])


def test_packages_are_the_locks_and_change_less_often_than_code() -> None:
    syncs = [index for index, (name, text) in enumerate(STEPS) if name == "RUN" and "uv sync" in text]
    assert all("--frozen" in STEPS[index][1] and "--no-dev" in STEPS[index][1] for index in syncs)
    assert "--extra store" in STEPS[syncs[0]][1]  # for root=gs://..., whatever the accelerator
    before = [text for name, text in STEPS[: syncs[0]] if name == "COPY"]
    assert before == ["pyproject.toml uv.lock README.md ./"]


def test_the_process_is_not_root() -> None:
    assert [text for name, text in STEPS if name == "USER"] == ["1000"]
    assert [name for name, _ in STEPS][-2:] == ["USER", "CMD"]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
def test_hadolint_finds_nothing() -> None:
    subprocess.run(["hadolint", DOCKERFILE], check=True)


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="needs root, and namespaces")
def test_the_steps_for_the_cpu_make_a_program_that_trains(tmp_path: Path) -> None:
    image = build(DOCKERFILE, REPOSITORY, tmp_path, ACCELERATOR="cpu")
    assert image.command == ["lifecycle", "--help"]
    assert image.run("lifecycle", "--version").stdout.strip() == VERSION
    assert image.run("sh", "-c", "touch /app/x").returncode != 0
    image.environment["HOME"] = "/home/lifecycle"
    done = image.run("lifecycle", "run", "configs/debug.yaml", "--until", "pretrain", "mesh.fsdp=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "app" / "runs" / "debug").glob("pretrain-*/manifest.json"))
