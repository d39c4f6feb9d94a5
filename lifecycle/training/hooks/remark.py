"""Tells the user what the stage's metrics say of it (`training/remarks.py`)."""

from lifecycle.core.runlog import read_log
from lifecycle.model.params import compute_dtype
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import TrainJob
from lifecycle.training.remarks import RemarkedStage, Remarks
from lifecycle.training.run import TrainingRun


class Tell(Hook):
    """A line for each new remark, in the process that writes the log. It comes after the hooks that log. What the log
    has from before is seen again, and told no more."""

    def __init__(self, job: TrainJob) -> None:
        train = job.train
        self._stage = RemarkedStage(train.objective, train.steps, compute_dtype(job.model), train.plain())
        self._told: set[str] = set()  # by this process, which may have gone back since
        self._remarks = Remarks(self._stage)

    def start(self, run: TrainingRun) -> None:
        """Sees the records that a resumed run keeps."""
        self._remarks = Remarks(self._stage)
        if run.log is not None:
            for record in read_log(run.log.path):
                self._told.update(remark.kind for remark in self._remarks.see(record))

    def after_step(self, run: TrainingRun) -> None:
        """Sees what has been logged of the step."""
        if run.log is None or run.logged.get("step") != run.step:
            return
        for remark in self._remarks.see(run.logged):
            if remark.kind not in self._told:
                self._told.add(remark.kind)
                run.progress.note(str(remark))
