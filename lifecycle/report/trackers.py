"""Trackers as readers of the run log: TensorBoard's, MLflow's and W&B's own files, made from a run's records.

Training knows no tracker: `track` reads the logs and may run later, on another machine, or not at all. What must hold:
no point is written twice. A restart rewinds the log and logs steps again, so for each stage and metric the last written
step is kept, in a file that is written after the tracker's; only a kill between the two writes the newest points again
(W&B writes in a process of its own: there they may be missing instead). Points of steps that the run gave up stay, for
no tracker takes any back: the steps after it went back from a fault have other values, under another stage's name.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lifecycle.core.files import write_text
from lifecycle.report.watched import WatchedStage

TRACKED = "tracked.json"  # in the tracker's folder: by stage and metric, the last written step


@dataclass(frozen=True)
class TrackedPoint:
    """A metric's value after a step."""

    metric: str
    step: int
    value: float


class Tracker(Protocol):
    """Writes points of one stage after the other, in order of steps."""

    def write(self, run: str, stage: str, points: Sequence[TrackedPoint]) -> None:
        """Adds points."""
        ...

    def close(self) -> None:
        """Ends what the tracker has open: all points are on disk when it returns."""
        ...


class Tracking:
    """What one tracker's folder has of a run so far."""

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self._tracker, self._state = tracker, folder / TRACKED
        self._last: dict[str, dict[str, int]] = {}
        if self._state.is_file():
            self._last = json.loads(self._state.read_text(encoding="utf-8"))

    def update(self, run: str, stages: Sequence[WatchedStage]) -> int:
        """Writes the points that are new since the last call, of this process or of an earlier one; their number."""
        written = 0
        for stage in stages:
            for name, records in by_attempt(stage).items():
                if points := new_points(records, self._last.get(name, {})):
                    self._tracker.write(run, name, points)
                    self._last.setdefault(name, {}).update({point.metric: point.step for point in points})
                    write_text(self._state, json.dumps(self._last))
                    written += len(points)
        return written


def by_attempt(stage: WatchedStage) -> dict[str, list[dict[str, Any]]]:
    """The stage's records by the name that a tracker gets: its folder's, so that a stage made anew with other settings
    is another one, and after each time that the run went back, with the last batch that it passed over."""
    name = stage.folder.name.removesuffix(".partial")
    starts = {0: name}
    for fault in stage.faults:
        if fault["action"] == "went back":
            starts[fault["step"]] = f"{name}-past-batch-{fault['passed_over'][1]}"
    found: dict[str, list[dict[str, Any]]] = {}
    for record in stage.records:
        found.setdefault(starts[max(step for step in starts if step <= record["step"])], []).append(record)
    return found


def new_points(records: Sequence[dict[str, Any]], last: dict[str, int]) -> list[TrackedPoint]:
    """The points of the records that come after the last written step of their metric."""
    return [
        TrackedPoint(metric, record["step"], value)
        for record in records
        for metric, value in record.items()
        if metric != "step" and record["step"] > last.get(metric, -1)
    ]


class TensorBoard:
    """Event files, a folder for each stage."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._writers = folder, {}

    def write(self, run: str, stage: str, points: Sequence[TrackedPoint]) -> None:
        """Adds scalars and flushes them."""
        from tensorboardX import SummaryWriter

        if stage not in self._writers:
            self._writers[stage] = SummaryWriter(str(self._folder / stage), filename_suffix=f".{time.time_ns()}")
        for point in points:
            self._writers[stage].add_scalar(point.metric, point.value, point.step)
        self._writers[stage].flush()

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()


class MLflow:
    """An SQLite database: an experiment for the run, a run of MLflow's for each stage."""

    def __init__(self, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').absolute()}")

    def write(self, run: str, stage: str, points: Sequence[TrackedPoint]) -> None:
        """Adds metrics to the stage's run, which is made if it is not there."""
        from mlflow.entities import Metric

        found = self._run_id(run, stage)
        for first in range(0, len(points), 1000):  # more are refused in one call
            part = points[first : first + 1000]
            self._client.log_batch(found, [Metric(p.metric, p.value, p.step, p.step) for p in part])

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _run_id(self, run: str, stage: str) -> str:
        experiment = self._client.get_experiment_by_name(run)
        number = self._client.create_experiment(run) if experiment is None else experiment.experiment_id
        runs = self._client.search_runs([number], f"attributes.run_name = '{stage}'")
        return (runs[0] if runs else self._client.create_run(number, run_name=stage)).info.run_id


class WeightsAndBiases:
    """Offline files, for `wandb sync`: a run for each stage, under an id that is the same in every call."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._runs = folder, {}

    def write(self, run: str, stage: str, points: Sequence[TrackedPoint]) -> None:
        """Logs the points, those of one step together."""
        import wandb

        if stage not in self._runs:
            quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True)
            self._runs[stage] = wandb.init(
                project=run, name=stage, id=stage, dir=str(self._folder), mode="offline", resume="allow",
                reinit="create_new", settings=quiet,
            )  # fmt: skip
        for step in dict.fromkeys(point.step for point in points):
            self._runs[stage].log({p.metric: p.value for p in points if p.step == step}, step=step)

    def close(self) -> None:
        """Finishes the runs, and ends W&B's own process, which writes the files."""
        import wandb

        for run in self._runs.values():
            run.finish()
        wandb.teardown()


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
