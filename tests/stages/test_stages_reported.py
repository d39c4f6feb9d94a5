"""The report of a run that another process makes: what is finished, and the curves of what goes on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from lifecycle.cli.report import report
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.lease import Lease, LeaseError, locked
from lifecycle.core.progress import Silent
from lifecycle.core.store import Store
from lifecycle.core.timesheet import Timesheet
from lifecycle.report.blocks import Table
from lifecycle.stages.chain import bring_up_to_date, states
from lifecycle.stages.config import RunConfig
from lifecycle.stages.reported import report_so_far
from lifecycle.stages.storage import changing_registry
from tests.artifacts import MakeArtifact

MODEL = {"vocab_size": 264, "d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
         "head_dim": 16, "max_seq_len": 128}  # fmt: skip
FACTS = {
    "objective": "sft", "steps": 40, "tokens_per_step": 1000, "train_flops_per_token": 2e6, "devices": 1,
    "matmul_peak_flops": 1e9, "platform": "cpu",
}  # fmt: skip


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run that tunes a fresh model on chat rows."""
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}."}]}
        for i in range(24)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"steps": 40, "seq_len": 128, "global_batch_size": 4}
    tree = {
        "name": "tuned", "root": "s3://bucket/runs", "model": MODEL, "tokenizer": {"kind": "bytes"},
        "rows": {"chat": [str(tmp_path / "own.jsonl")]}, "train": {"chat": {"objective": "sft", **sizes}},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    return tmp_path / "run.yaml"


def log(stage: Path) -> None:
    """What a training stage leaves of its first 20 steps."""
    stage.mkdir(parents=True)
    records = [{"step": step, "loss": 5 - step / 10, "tokens_per_s": 500.0} for step in (10, 20)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sample = {"step": 20, "split": "train", "prompt": "1?", "completion": "one", "reward": 0.5, "rewards": {}}
    (stage / "rollouts.jsonl").write_text(json.dumps(sample) + "\n")
    sheet = Timesheet(stage / "times.jsonl", 1_000_000.0, 0, {"start": 5.0}, settings={}, **FACTS)
    sheet.write(20, {"start": 5.0, "steps": 15.0}, step_s=[1.0] * 20, process_bytes=10**9)
    sheet.close()


def training_folder(config: RunConfig) -> str:
    (draft,) = (state.draft for state in states(config, ("chat",)) if state.stage.name == "chat")
    assert draft is not None
    return draft.final_path.name


def test_a_run_of_another_machine_is_reported_while_it_trains(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: dict[str, MemoryStore],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    monkeypatch.setattr(Lease.__init__, "__defaults__", (0.6, 0.0))
    config = load_config(RunConfig, run_file)
    bring_up_to_date(config, ("tokenizer", "rows"), Silent())
    store, name = Store("s3://bucket/runs/tuned"), training_folder(config)
    log(tmp_path / "logs")
    for file in (tmp_path / "logs").iterdir():
        store.upload(file, f"{name}/{file.name}")
    store.write(f"{name}/checkpoints/20/large", b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    owner, page = Lease(store, Silent()), tmp_path / "page.html"
    owner.owner = replace(owner.owner, kernel="another")
    with owner.holding():
        before = store.list().keys()
        report(run_file, out=page)
        assert store.list().keys() - before <= {"lease.clock"}  # nothing is made
    shown = page.read_text()
    assert "Not finished: chat, export, register, report." in shown and "bytes" in shown
    assert "Completions so far" in shown and "one" in shown
    assert "Loss, training" in shown and ">20<" in shown.replace(" ", "").replace("\n", "")
    said = capsys.readouterr().out
    assert "owned by process" in said and "this is what the run has so far" in said and str(page) in said
    assert not list((tmp_path / "two").rglob("large"))


def test_a_local_run_is_reported_while_it_trains_and_needs_a_finished_stage(run_file: Path, tmp_path: Path) -> None:
    config, page = load_config(RunConfig, run_file, (f"root={tmp_path}",)), tmp_path / "page.html"
    config.folder.mkdir()
    with locked(config.folder), pytest.raises(ValueError, match="tuned: no stage is finished yet; `lifecycle watch`"):
        report(run_file, f"root={tmp_path}", out=page)
    bring_up_to_date(config, ("tokenizer", "rows"), Silent())
    log(config.folder / f"{training_folder(config)}.partial")
    log(config.folder / "chat-0123456789ab.partial")  # of other settings: not of this run
    with locked(config.folder):
        report(run_file, f"root={tmp_path}", out=page)
    assert "Loss, training" in page.read_text()
    *finished, runs, chat, completions = report_so_far(config).sections
    (table,) = (block for block in runs.blocks if isinstance(block, Table))
    assert [row[:3] for row in table.rows] == [("chat", "tuned", "20")] and chat.title == "chat"
    assert completions.title == "Completions so far"
    assert [section.title for section in finished] == [
        "Summary",
        "Tokenizer",
        "Rows",
        "Chain and cost",
        "Machine and versions",
    ]


def test_a_report_takes_no_run_from_an_owner_that_does_not_answer(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: dict[str, MemoryStore],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    monkeypatch.setattr(Lease.__init__, "__defaults__", (0.6, 0.0))
    monkeypatch.setattr(Lease, "_age", lambda lease, stored: 100.0)
    monkeypatch.chdir(tmp_path)
    config = load_config(RunConfig, run_file)
    bring_up_to_date(config, ("tokenizer", "rows"), Silent())
    owner = Lease(Store("s3://bucket/runs/tuned"), Silent())
    owner.owner = replace(owner.owner, kernel="another")
    owner._take()
    report(run_file)
    said = " ".join(capsys.readouterr().out.split())
    assert "which has not renewed its lease: this is what the run has so far tuned-so-far.html" in said
    assert "Not finished: chat" in (tmp_path / "tuned-so-far.html").read_text()
    owner._renew()
    owner.require()


def test_a_registry_that_another_process_changes_is_not_the_run(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: dict[str, MemoryStore]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    monkeypatch.setattr(Lease.__init__, "__defaults__", (0.6, 0.0))
    monkeypatch.setattr("lifecycle.stages.storage.REGISTRY_WAIT_S", 0.1)

    def registering(config: RunConfig, *_: object, **__: object) -> None:
        with changing_registry(config, Silent()):
            pass

    monkeypatch.setattr("lifecycle.cli.report.make", registering)
    owner = Lease(Store("s3://bucket/runs/tuned/registry"), Silent())
    owner.owner = replace(owner.owner, kernel="another")
    refused = pytest.raises(LeaseError, match=r"tuned/registry: owned by .*, which changes the registry; try again")
    with owner.holding(), refused:
        report(run_file, out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_page_is_written_where_it_is_asked_for(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_artifact: MakeArtifact
) -> None:
    made = make_artifact("report", {"report.html": "<html>whole</html>"})
    monkeypatch.setattr("lifecycle.cli.report.make", lambda *_, **__: {"report": made})
    report(run_file, out=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "<html>whole</html>"


def test_a_run_with_nothing_in_its_store_has_no_stage(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: dict[str, MemoryStore]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    with pytest.raises(ConfigError, match="s3://bucket/runs/tuned: no stage is finished yet; `lifecycle watch`"):
        report_so_far(load_config(RunConfig, run_file))


def test_a_lost_lease_is_no_report(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise LeaseError("lost its lease")

    monkeypatch.setattr("lifecycle.cli.report.make", lost)
    with pytest.raises(LeaseError, match="lost its lease"):
        report(run_file)
