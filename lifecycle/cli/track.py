"""`lifecycle track`: a run's metrics in the files of TensorBoard, MLflow or W&B."""

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lifecycle.cli.arguments import Overrides, run_folder
from lifecycle.report.trackers import TRACKERS, Tracking
from lifecycle.report.watched import watched_stages

EVERY_S = 10.0

type RunPath = Annotated[Path, Parameter(help="A run's folder, for example runs/quickstart, or its YAML file.")]
type To = Annotated[Literal["tensorboard", "mlflow", "wandb"], Parameter(help="The tracker; each is an extra.")]
type Into = Annotated[Path | None, Parameter(help="The tracker's folder; by default TRACKER in the run's folder.")]
type Follow = Annotated[bool, Parameter(help="Go on until Ctrl-C, reading the run's logs every ten seconds.")]


def track(run: RunPath, /, *overrides: Overrides, to: To, into: Into = None, follow: Follow = False) -> None:
    """Writes what the tracker does not have yet; once, or with `follow` while the run goes on."""
    folder = run_folder(run, overrides)
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
                tracking.update(folder.name, watched_stages(folder))
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install it: uv sync --extra {to}") from None
    except KeyboardInterrupt:
        return
