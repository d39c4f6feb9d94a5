"""What each tracker's own reader finds after `track`: every point once, also after a restart and in a second call."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lifecycle.report.trackers import TRACKERS, TrackedPoint, Tracker, Tracking, new_points
from lifecycle.report.watched import WatchedStage

RECORDS = [{"step": 0, "heldout_loss": 4.0}, {"step": 2, "loss": 3.0, "cpu_s": 1.0}, {"step": 4, "loss": 2.5}]
AFTER_RESTART = [*RECORDS[:2], {"step": 4, "loss": 2.5}, {"step": 4, "heldout_loss": 2.0}, {"step": 6, "loss": 2.25}]
POINTS = {"heldout_loss": [(0, 4.0), (4, 2.0)], "loss": [(2, 3.0), (4, 2.5), (6, 2.25)], "cpu_s": [(2, 1.0)]}


def stage(folder: Path, records: list[dict[str, Any]], is_finished: bool = False) -> WatchedStage:
    end = "" if is_finished else ".partial"
    return WatchedStage("pretrain", folder / f"pretrain-ab12{end}", (), tuple(records))


def test_only_points_after_the_last_written_step_are_new() -> None:
    assert new_points(RECORDS, {"loss": 2, "heldout_loss": 0, "cpu_s": 2}) == [TrackedPoint("loss", 4, 2.5)]
    assert len(new_points(RECORDS, {})) == 4


class Noted(Tracker):
    """Keeps the points by stage."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}

    def write(self, run: str, stage: str, points: Sequence[TrackedPoint]) -> None:
        """Keeps them."""
        self.points.setdefault(stage, []).extend((point.step, point.value) for point in points)

    def close(self) -> None:
        """Nothing is open."""


def test_steps_after_the_run_went_back_are_another_stages(tmp_path: Path) -> None:
    """It goes back to step 2 from 5, then to 2 again from 3, and later to 4 from 6."""
    tracker, first = Noted(), [{"step": 2, "loss": 3.0}]
    tracking = Tracking(tracker, tmp_path)

    def track(faults: dict[int, int], *losses: tuple[int, float]) -> None:
        back = [{"step": to + 1, "action": "went back", "passed_over": [to, last]} for to, last in faults.items()]
        records = (*first, *({"step": step, "loss": loss} for step, loss in losses))
        tracking.update("debug", [WatchedStage("pretrain", tmp_path / "pretrain-ab12", (), records, tuple(back))])

    track({}, (4, 2.5))
    track({2: 4}, (3, 2.75))
    track({2: 5}, (3, 2.7), (4, 2.6), (6, 2.4))
    track({2: 5, 4: 8}, (3, 2.7), (4, 2.6), (6, 2.3))
    assert tracker.points == {
        "pretrain-ab12": [(2, 3.0), (4, 2.5)],
        "pretrain-ab12-past-batch-4": [(3, 2.75)],
        "pretrain-ab12-past-batch-5": [(3, 2.7), (4, 2.6), (6, 2.4)],
        "pretrain-ab12-past-batch-8": [(6, 2.3)],
    }


def track_twice(to: str, folder: Path) -> None:
    """While the run goes on, after its restart, and again when it is finished: the last call has nothing to write."""
    for records, is_finished, points in ((RECORDS, False, 4), (AFTER_RESTART, False, 2), (AFTER_RESTART, True, 0)):
        tracker = TRACKERS[to](folder)
        assert Tracking(tracker, folder).update("debug", [stage(folder, records, is_finished)]) == points
        tracker.close()


def test_tensorboard_reads_every_point_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard, to read the events back"
    )
    track_twice("tensorboard", tmp_path)
    read = accumulator.EventAccumulator(str(tmp_path / "pretrain-ab12")).Reload()
    assert {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]} == POINTS


def test_mlflow_reads_every_point_once(tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="needs the extra mlflow")
    track_twice("mlflow", tmp_path)
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("debug").experiment_id])
    read = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert {name: sorted((m.step, m.value) for m in history) for name, history in read.items()} == POINTS


def logged(path: Path) -> Iterator[bytes]:
    """The records of W&B's file: LevelDB's log format (its `doc/log_format.md`) behind a header of 7 bytes."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is empty
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def test_wandb_reads_every_point_once(tmp_path: Path) -> None:
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="needs the extra wandb")
    track_twice("wandb", tmp_path)
    read: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        for content in logged(path):
            record = protocol.Record.FromString(content)
            if record.WhichOneof("record_type") == "history":
                items = {(i.key or "/".join(i.nested_key)): float(i.value_json) for i in record.history.item}
                for name in items.keys() - {"_step", "_timestamp", "_runtime"}:
                    read.setdefault(name, []).append((int(items["_step"]), items[name]))
    assert read == POINTS
