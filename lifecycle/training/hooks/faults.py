"""What happens after a faulty step: the run stops, leaves its update out, or goes back to a checkpoint.

The host looks at the signals of all steps since it looked last, whenever metrics are fetched; so nothing that is logged
or saved comes from weights behind a faulty update.
"""

import json
import math
from collections.abc import Mapping

from lifecycle.core.distributed import is_writer
from lifecycle.core.files import write_text
from lifecycle.core.stopping import Stopped
from lifecycle.training.faults import IN_ROW, SIGNALS
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.run import TrainingRun

OFFENDING = "offending.jsonl"  # in a job's `out`: the rows of the batch that stopped it


class DivergedError(ValueError):
    """The loss, the gradient norm or another metric is not finite, or the loss or the gradient norm has a spike."""


class GoBack(Exception):
    """A step is faulty, and the run goes back to a checkpoint before it."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what}")
        self.step, self.what = step, what


class Faults(Hook):
    """Treats faulty steps by the stage's `faults.policy`, before metrics are logged and before a save. Raises
    `DivergedError` or `GoBack`."""

    def after_step(self, run: TrainingRun) -> None:
        """Looks at the steps since the last fetch, in order."""
        if run.metrics is None:
            return
        for step, signals in run.fetched:
            if is_faulty(signals):
                self._treat(run, step, signals)
        if is_faulty(run.fetched[-1][1]):
            run.metrics = None  # of an update that was left out: nothing to log
        elif not all(math.isfinite(value) for value in run.metrics.values()):
            raise diverged(run.job, run.step, f"{run.metrics}: not finite")

    def _treat(self, run: TrainingRun, step: int, signals: Mapping[str, float]) -> None:
        faults, what = run.job.train.faults, described(signals)
        if faults.policy == "rollback":
            if run.is_stopping:  # the restarted job meets the step again, and goes back then
                raise Stopped(f"step {step}: {what}; stopped before going back from it")
            raise GoBack(step, what)
        if faults.policy == "stop":
            raise diverged(run.job, step, what)
        if signals[IN_ROW] >= faults.limit:
            raise diverged(run.job, step, f"{what}, as {faults.limit - 1} steps before it (faults.limit)")
        run.progress.note(f"step {step}: {what}; its update is left out")
        if run.log is not None:
            run.log.write(step=step, fault=what, action="skipped")


def is_faulty(signals: Mapping[str, float]) -> bool:
    """Whether the step said so or, if it was not asked to, whether a signal is not finite."""
    return signals[IN_ROW] > 0 if IN_ROW in signals else not all(map(math.isfinite, signals.values()))


def described(signals: Mapping[str, float]) -> str:
    """The signals of a faulty step, in words."""
    values = {name: signals[name] for name in SIGNALS}
    is_finite = all(map(math.isfinite, values.values()))
    listed = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
    return f"{listed}: {'a spike' if is_finite else 'not finite'}"


def diverged(job: TrainJob, step: int, what: str) -> DivergedError:
    """The error of a run that stops at `step`, with the rows of its batch written out."""
    if is_writer():
        rows = job.batches.contents(step - 1)
        write_text(job.out / OFFENDING, "".join(json.dumps({"step": step, **row}) + "\n" for row in rows))
    return DivergedError(
        f"step {step}: {what}. Its rows are in {(job.out / OFFENDING).absolute()}. The checkpoints before it are kept "
        f"in {(job.out / CHECKPOINTS).absolute()}; lower optimizer.learning_rate or optimizer.clip_norm, or set "
        "faults.policy to skip or rollback, and the run goes on from there"
    )
