"""What people see of a run, on a terminal and in a log file, and what the command line makes of its words."""

import io
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lifecycle.cli import make
from lifecycle.cli.arguments import name_first
from lifecycle.cli.display import Live, Plain, in_line, progress_on, visible
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


@pytest.mark.parametrize(("second", "shown"), [(59.6, "1:00"), (3725.0, "1:02:05")])
def test_time_left_is_in_hours_minutes_and_seconds(second: float, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 100.0 + second])
    monkeypatch.setattr("lifecycle.cli.display.time.monotonic", lambda: next(clock))
    console = Console(file=io.StringIO())
    progress = Plain(console)
    progress.start("tagging", total=3)
    progress.update(1, documents=1200)
    progress.update(2, documents=2400)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().endswith(f"2/3  2,400 documents  {shown} left\n")
    assert "1/3  1,200 documents\n" in console.file.getvalue()


def test_a_bar_has_the_time_left_until_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lifecycle.cli.display.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Live(console) as progress:
        progress.start("tagging", total=3)
        for done in (1, 2):
            now[0] += 50
            progress.update(done)
        assert "0:50 left" in rendered(progress)
        now[0] += 20
        assert "0:30 left" in rendered(progress)
        progress.update(3)
        assert "left" not in rendered(progress)


def rendered(progress: Live) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(progress._bars.make_tasks_table(progress._bars.tasks))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@given(st.text())
def test_a_text_of_others_moves_no_cursor_and_hides_nothing(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"]
    assert not {*shown} & {*"\u202a\u202e\u2066\u2069\u200b\ufeff"}
    assert "\n" not in in_line(text) and "\t" not in in_line(text)
    assert visible(shown) == shown


def test_ordinary_texts_stay_as_they_are() -> None:
    for text in ("a\n\tb", "naïve 日本語 🙂", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "👩\u200d💻"):
        assert visible(text) == text
    assert visible("\x1b[31m\r\u202e") == "\\x1b[31m\\r\\u202e" and in_line("a\nb") == "a\\nb"


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
