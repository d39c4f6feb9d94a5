"""What people see of a run, on a terminal and in a log file, and what the command line makes of its words."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lifecycle.cli import make
from lifecycle.cli.arguments import name_first
from lifecycle.cli.display import Live, Plain, progress_on
from lifecycle.core.artifact import Artifact
from lifecycle.core.config import load_config
from lifecycle.core.progress import Progress
from lifecycle.stages.config import RunConfig

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"


def follow(console: Console) -> str:
    with progress_on(console) as progress:
        progress.start("pre-training", total=10)
        progress.update(5, loss=1.25, tokens_per_s=4321.0, unshown=1)
        progress.note("halfway")
        progress.start("fine-tuning")
        progress.update(3, total=4, loss=0.5)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_gets_whole_lines_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.cli.display.PLAIN_EVERY_S", 0.0)
    console = Console(file=io.StringIO(), width=40)
    assert isinstance(progress_on(console), Plain)
    lines = follow(console).splitlines()
    assert any("pre-training" in line and "5/10  loss 1.250  4,321 tokens/s" in line for line in lines)
    assert any(line.endswith("halfway") for line in lines)
    assert "\x1b" not in "".join(lines) and len(lines) == 5


def test_time_left_is_in_minutes_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 59.6, 59.6, 59.6])
    monkeypatch.setattr("lifecycle.cli.display.time.monotonic", lambda: next(clock))
    console = Console(file=io.StringIO())
    progress = Plain(console)
    progress.start("pre-training", total=2)
    progress.update(1)
    assert isinstance(console.file, io.StringIO) and console.file.getvalue().endswith(" 1:00 left\n")


def test_a_terminal_gets_a_bar_for_each_stage() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    assert isinstance(progress_on(console), Live)
    shown = follow(console)
    assert "pre-training" in shown and "fine-tuning" in shown and "loss 0.500" in shown


@pytest.mark.parametrize(
    ("words", "name", "overrides"),
    [
        ((), None, ()),
        (("candidate",), "candidate", ()),
        (("root=x",), None, ("root=x",)),
        (("1a2b", "root=x", "name=y"), "1a2b", ("root=x", "name=y")),
    ],
)
def test_a_name_may_be_left_out_before_settings(
    words: tuple[str, ...], name: str | None, overrides: tuple[str, ...]
) -> None:
    assert name_first(words) == (name, overrides)


def test_the_program_restarts_before_it_imports_anything_heavy() -> None:
    check = "import sys, lifecycle.cli.program; print(*{'jax', 'numpy', 'pydantic', 'cyclopts'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize(("is_writer", "lines"), [(True, 1), (False, 0)])
def test_only_the_writing_process_of_a_job_reports(
    is_writer: bool, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(config: RunConfig, targets: object, progress: Progress, *_: object) -> dict[str, Artifact]:
        progress.note("a note")
        return {}

    monkeypatch.setattr(make.distributed, "is_writer", lambda: is_writer)
    monkeypatch.setattr(make, "bring_up_to_date", work)
    make.make(load_config(RunConfig, DEBUG, ()), (), ["debug.yaml"])
    assert capsys.readouterr().out.count("a note") == lines
