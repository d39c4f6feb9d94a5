"""What `watch` and `compare` show of runs that others write: half-written, rewound, damaged, of several stages."""

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore
from rich.console import Console

from lifecycle.cli.watch import picture, watch
from lifecycle.core.fetched import copy_of
from lifecycle.core.lease import Lease
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import rewind
from lifecycle.core.store import Store, StoreError
from lifecycle.core.timesheet import Timesheet
from lifecycle.report.blocks import Charts, LineChart, Paragraph, Table
from lifecycle.report.comparison import build_comparison, names_of, read_runs
from lifecycle.report.trackers import by_attempt, new_points
from lifecycle.report.watched import watched_stages
from lifecycle.testing.waiting import LIMIT_S, wait_until
from lifecycle.training.hooks.save_local import CAUSE as SAVED_LOCALLY

FACTS: dict[str, Any] = {
    "objective": "next_token", "steps": 40, "tokens_per_step": 1000, "train_flops_per_token": 2e6, "devices": 4,
    "matmul_peak_flops": 1e9, "platform": "cpu", "price_hour": 3600.0, "currency": "EUR",
}  # fmt: skip
BEGAN = 1_000_000.0


def make(
    run: Path, stage: str, losses: list[float], learning_rate: float = 0.1, began: float = BEGAN, **extra: Any
) -> Path:
    """A stage that is logged every tenth step and still runs."""
    folder = run / f"{stage}-0123456789ab.partial"
    folder.mkdir(parents=True)
    records = [{"step": 10 * (i + 1), "loss": loss, "tokens_per_s": 500.0} for i, loss in enumerate(losses)]
    records.insert(0, {"step": 0, "heldout_bits_per_byte": 8.0, "heldout_bits_per_byte.web": 7.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"train": {"optimizer": {"learning_rate": learning_rate}}, "seed": 0}
    sheet = Timesheet(folder / "times.jsonl", began, 0, {"start": 5.0}, settings=settings, **FACTS)
    sheet.write(0, {"start": 5.0, "compile": 15.0})
    for i in range(len(losses)):
        steps = {"step_s": [9.0] + [2.0] * 9, "cpu_s": 20.0 * (i + 1), **extra}
        sheet.write(10 * (i + 1), {"start": 5.0, "compile": 15.0, "steps": 20.0 * (i + 1)}, **steps)
    sheet.close()
    return folder


def shown(run: Path, now: float = BEGAN + 63) -> str:
    out = io.StringIO()
    console = Console(file=out, width=80)
    console.print(picture(run, watched_stages(run), now))
    text = out.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    return " ".join(text.split())


def test_a_stage_is_shown_with_what_is_known_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, "pretrain", [3.0, 2.5], process_bytes=1_500_000_000)
    text = shown(tmp_path)
    assert "20 of 40 (50.0 %), 40.0 s of steps left; last record 3.0 s ago" in text
    assert "loss 2.500" in text and "8.000 bits per byte (web 7.500)" in text
    assert "500 tokens/s, MFU 25.0 % of the measured matmul rate" in text
    assert "p50 2 s, p90 2 s" in text and "1.50 GB of the process" in text
    assert "66.7 % of 1 min 0 s in steps; start 8.3 %, compile 25.0 %" in text
    assert "failures none" in text and "40.00 EUR" in text
    assert "learning rate" not in text and "norms" not in text  # not in this log


TASK = {
    "choice/accuracy_per_byte": 0.4, "choice/accuracy_per_byte_stderr": 0.05, "choice/accuracy": 0.35,
    "choice/chance": 0.25,
}  # fmt: skip


def test_what_the_metrics_say_is_shown_again(tmp_path: Path) -> None:
    folder = make(tmp_path, "policy", [3.0] * 6)
    with (folder / "metrics.jsonl").open("a") as log:
        for step in range(10, 70, 10):
            log.write(json.dumps({"step": step, "frac_reward_zero_std": 1.0, "completions/clipped_ratio": 0.5}) + "\n")
    assert "warning step 40: 100% of the groups have equal rewards" in shown(tmp_path)
    page = build_comparison(read_runs([tmp_path]))
    said = [block.text for section in page.sections for block in section.blocks if isinstance(block, Paragraph)]
    (text,) = (text for text in said if text.startswith("Warning"))
    assert text.startswith(f"Warning, {tmp_path.name}, step 40: 100% of the groups")


def test_rewards_are_shown_and_compared(tmp_path: Path) -> None:
    for run, reward in (("one", 0.25), ("two", 0.5)):
        log = make(tmp_path / run, "policy", [3.0]) / "metrics.jsonl"
        rewards = {"step": 10, "reward": reward, "heldout_reward": reward / 2, "rewards/maths/mean": reward}
        log.write_text(log.read_text() + json.dumps(rewards) + "\n")
    make(tmp_path / "one", "chat", [3.0])
    assert "reward 0.2500, held out 0.1250" in shown(tmp_path / "one")
    page = build_comparison(read_runs([tmp_path / "one", tmp_path / "two"]))
    (table,) = (block for block in page.sections[0].blocks if isinstance(block, Table))
    assert table.columns[3:6] == ("last loss", "reward", "held-out reward")
    assert [row[:2] + row[4:6] for row in table.rows] == [
        ("chat", "one", "", ""), ("policy", "one", "0.2500", "0.1250"), ("policy", "two", "0.5000", "0.2500"),
    ]  # fmt: skip
    (policy,) = (section for section in page.sections if section.name == "policy")
    titles = [chart.title for block in policy.blocks if isinstance(block, Charts) for chart in block.items]
    assert {"Reward, sampled", "Reward, held out, likeliest", "rewards/maths/mean"} <= set(titles)


def test_a_measured_task_is_shown_with_its_error_its_chance_and_its_rows(tmp_path: Path) -> None:
    folder = make(tmp_path, "pretrain", [3.0])
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 10, **TASK}) + "\n")
    sheet = folder / "times.jsonl"
    sheet.write_text(sheet.read_text().replace('"devices"', '"measured_tasks": {"choice": "20 of 50 rows"}, "devices"'))
    assert "choice accuracy per byte 0.400 ± 0.050 (chance 0.250), 20 of 50 rows" in shown(tmp_path)
    (charts,) = (b for b in build_comparison(read_runs([tmp_path])).sections[1].blocks if isinstance(b, Charts))
    drawn = [(chart.title, chart.unit) for chart in charts.items]
    assert drawn[1:2] == [("Held-out text of web", "bits per byte")]
    assert drawn[-2:] == [("choice", "accuracy per byte"), ("choice", "accuracy")]


WENT_BACK = {"step": 11, "fault": "loss nan", "action": "went back", "from_step": 19, "passed_over": [10, 18]}
SKIPPED = {"step": 15, "fault": "loss 9.0: a spike", "action": "skipped"}


def test_faulty_steps_are_counted_and_no_metrics(tmp_path: Path) -> None:
    log = make(tmp_path, "pretrain", [3.0, 2.5]) / "metrics.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:2], json.dumps(WENT_BACK), json.dumps(SKIPPED), *lines[2:], ""]))
    assert "faulty steps went back 1, skipped 1" in shown(tmp_path)
    (stage,) = watched_stages(tmp_path)
    assert stage.names == ["heldout_bits_per_byte", "heldout_bits_per_byte.web", "loss", "tokens_per_s"]
    assert [name for name, records in by_attempt(stage).items() for _ in new_points(records, {})] == [
        *["pretrain-0123456789ab"] * 4, *["pretrain-0123456789ab-past-batch-18"] * 2,
    ]  # fmt: skip
    (charts,) = (b for b in build_comparison(read_runs([tmp_path])).sections[1].blocks if isinstance(b, Charts))
    assert len(charts.items) == 4


def test_local_checkpoints_and_replays_are_shown_with_the_other_causes(tmp_path: Path) -> None:
    folder = make(tmp_path, "pretrain", [3.0])
    sheet = Timesheet(folder / "times.jsonl", BEGAN + 40, 10, {"start": 5.0}, **FACTS)
    sheet.write(20, {"start": 5.0, "steps": 35.0, SAVED_LOCALLY: 10.0, "replay": 10.0})
    sheet.close()
    assert f"{SAVED_LOCALLY} 10.0 %, replay 10.0 %" in shown(tmp_path)


def test_published_peaks_and_device_memory_are_said_to_be_so(tmp_path: Path) -> None:
    folder = make(tmp_path, "pretrain", [3.0], device_peak_bytes=60_000_000_000, device_limit_bytes=80_000_000_000)
    sheet = folder / "times.jsonl"
    sheet.write_text(sheet.read_text().replace('"platform": "cpu"', '"platform": "gpu", "peak_chip": "h100"'))
    text = shown(tmp_path)
    assert "MFU 25.0 % of the h100's published peak" in text and "60.0 GB at most on a device of 80.0 GB" in text
    assert "160.00 EUR" in text  # 4 devices for 40 seconds


def test_a_log_that_is_being_written_rewound_and_renamed_is_read(tmp_path: Path) -> None:
    folder = make(tmp_path, "pretrain", [3.0, 2.5])
    for name in ("metrics.jsonl", "times.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 30, "lo')
    assert "loss 2.500" in shown(tmp_path)
    rewind(folder / "metrics.jsonl", 10)
    assert "loss 3.000" in shown(tmp_path)
    make(tmp_path, "sft", [1.0], began=BEGAN + 100)
    folder.rename(folder.with_name("pretrain-0123456789ab"))
    assert [stage.name for stage in watched_stages(tmp_path)] == ["pretrain", "sft"]
    (folder.with_name("pretrain-0123456789ab") / "metrics.jsonl").write_text("{\n{}\n")
    text = shown(tmp_path)
    assert "metrics.jsonl:1: damaged" in text.replace("metrics. jsonl", "metrics.jsonl") and "loss 1.000" in text


def test_once_prints_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "pretrain", [3.0])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    watch(str(tmp_path), once=True)
    assert capsys.readouterr().out.count("pretrain") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match="no such folder"):
        watch(str(tmp_path / "other"), once=True)


def test_a_run_in_a_store_is_watched_from_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: dict[str, MemoryStore],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By its address or its config; on the machine that makes it, its own folder is newer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config, root = Path(__file__).parents[2] / "configs" / "debug.yaml", "root=s3://bucket/my runs"
    store = Store("s3://bucket/my runs/debug")
    here = make(tmp_path / "there", "pretrain", [3.0, 2.5])
    for log in here.glob("*.jsonl"):
        store.upload(log, f"pretrain-0123456789ab/{log.name}")
    store.write("pretrain-0123456789ab/checkpoints/10/deep.jsonl", b"")
    for run in (("s3://bucket/my runs/debug/",), (str(config), root)):
        watch(*run, once=True)
        assert "2.500" in capsys.readouterr().out
    copies = copy_of("s3://bucket/my runs/debug")
    assert {path.name for path in copies.rglob("*.jsonl")} == {log.name for log in here.glob("*.jsonl")}
    with Lease(store, Silent()).holding(), pytest.raises(ValueError, match="s3/bucket/my runs/debug: no such folder"):
        watch(str(config), root, once=True)
    with pytest.raises(StoreError, match="s3://bucket/gone: nothing is there"):
        watch("s3://bucket/gone", once=True)


def test_ctrl_c_ends_the_picture_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "pretrain", [3.0])
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lifecycle.cli.watch.terminal", lambda: console)
    monkeypatch.setattr("lifecycle.cli.watch.time", type("Clock", (), {"sleep": interrupt, "time": time.time}))
    watch(str(tmp_path))
    text = out.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is visible again"
    assert "pretrain" in text and text.endswith("\x1b[?25h")


def test_on_a_terminal_the_picture_follows_the_run_until_ctrl_c(tmp_path: Path) -> None:
    """The real command on a real terminal, whose screen is read as it is drawn."""
    log = make(tmp_path, "pretrain", [3.0]) / "metrics.jsonl"
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    script = (
        "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "import lifecycle.cli.watch as w; w.EVERY_S = 0.05\n"
        "from lifecycle.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "watch", str(tmp_path)],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    screen = io.BytesIO()

    def shows(text: bytes) -> bool:
        screen.write(os.read(ours, 65536))
        return text in screen.getvalue()

    wait_until(partial(shows, b"3.000"), 0)
    with log.open("a") as file:
        file.write(json.dumps({"step": 20, "loss": 1.25}) + "\n")
    wait_until(partial(shows, b"1.250"), 0)
    os.write(ours, b"\x03")  # Ctrl-C: the terminal sends SIGINT
    wait_until(partial(shows, b"\x1b[?25h"), 0)
    assert process.wait(LIMIT_S) == 0
    os.close(ours)


def test_runs_are_compared_also_when_one_is_shorter_damaged_or_lacks_a_stage(tmp_path: Path) -> None:
    make(tmp_path / "a", "pretrain", [3.0, 2.5, 2.25], learning_rate=0.1)
    make(tmp_path / "a", "sft", [1.0], began=BEGAN + 100)
    make(tmp_path / "b", "pretrain", [3.5], learning_rate=0.2)
    (make(tmp_path / "c", "pretrain", [9.0]) / "metrics.jsonl").write_text("{\n")
    report = build_comparison(read_runs([tmp_path / name for name in "abc"]))
    runs, pretrain, sft = report.sections
    assert any(
        isinstance(b, Paragraph) and "c, pretrain" in b.text and "metrics.jsonl:1" in b.text for b in runs.blocks
    )
    (table,) = (block for block in pretrain.blocks if isinstance(block, Table))
    assert ("train.optimizer.learning_rate", "0.1", "0.2") in [row[:3] for row in table.rows]
    (charts,) = (block for block in pretrain.blocks if isinstance(block, Charts))
    loss = next(chart for chart in charts.items if isinstance(chart, LineChart) and chart.title == "Loss, training")
    assert [(s.name, len(s.points), s.color) for s in loss.series] == [("a", 3, 0), ("b", 1, 1)]
    assert any(isinstance(block, Paragraph) and block.text == "Not a stage of b, c." for block in sft.blocks)


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    assert names_of([Path("/x/runs/a"), Path("/x/runs/b")]) == ["a", "b"]
    assert names_of([Path("/x/one/a"), Path("/x/two/a")]) == ["one/a", "two/a"]
    with pytest.raises(ValueError, match="twice"):
        read_runs([tmp_path, tmp_path])
