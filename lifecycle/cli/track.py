"""`lifecycle track`: a run's metrics in the files of TensorBoard, MLflow or W&B."""

import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lifecycle.cli.arguments import Overrides, logs_folder
from lifecycle.core.store import StoreError
from lifecycle.report.trackers import TRACKERS, Tracking
from lifecycle.report.watched import watched_stages

EVERY_S = 30.0

type RunPlace = Annotated[str, Parameter(help="A run's folder (runs/quickstart), its address, or its YAML file.")]
type To = Annotated[Literal["tensorboard", "mlflow", "wandb"], Parameter(help="The tracker; each is an extra.")]
type Into = Annotated[Path | None, Parameter(help="The tracker's folder; by default TRACKER in the run's folder.")]
type Follow = Annotated[bool, Parameter(help="Go on until Ctrl-C, reading the run's logs every half minute.")]


def track(run: RunPlace, /, *overrides: Overrides, to: To, into: Into = None, follow: Follow = False) -> None:
    """Writes what the tracker does not have yet; once, or with `follow` while the run goes on."""
    folder = logs_folder(run, overrides)
    stages = watched_stages(folder)
    target = into or folder / to
    target.mkdir(parents=True, exist_ok=True)
    try:
        tracker = TRACKERS[to](target)
        with closing(tracker):
            tracking = Tracking(tracker, target)
            print(f"{tracking.update(folder.name, stages)} points written to {target}")
            while follow:
                time.sleep(EVERY_S)
                with suppress(StoreError):  # the store is away for a while
                    tracking.update(folder.name, watched_stages(logs_folder(run, overrides)))
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install it: uv sync --extra {to}") from None
    except KeyboardInterrupt:
        return
