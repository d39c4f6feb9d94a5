"""Batches that depend on the weights, as rollouts do, and on the batches before them.

As a program it is a run on them that is killed: `python -m tests.training.drawn_batches OUT STEP CHECKPOINT`.
"""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.model.params import Params
from lifecycle.testing.jobs import KillAt, TinyRun, tiny_job
from lifecycle.testing.tiny_rows import SEQ_LEN, Documents
from lifecycle.training.batches import HostBatch, one_epoch
from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.loop import run_job

RUN = TinyRun(steps=8, checkpoint_every=3)


class DrawnBatches:
    """A batch of documents drawn by the bits of the weights and of what was drawn before."""

    def __init__(self, global_batch_size: int) -> None:
        self._global_batch_size = global_batch_size
        self._memory = {0: ""}  # before each step: what was drawn so far
        self.drawn: list[str] = []

    def batch(self, step: int, params: Params) -> HostBatch:
        """One batch from the documents of a seed."""
        content = self._memory[step].encode() + np.asarray(params["head"]).tobytes()
        self._memory[step + 1] = hashlib.sha256(content).hexdigest()
        self.drawn.append(self._memory[step + 1])
        seed = int(self._memory[step + 1][:8], 16)
        return next(
            one_epoch(DocumentRows(Documents(60, seed), SEQ_LEN, seed), global_batch_size=self._global_batch_size)
        )

    def spent(self, step: int) -> dict[str, float]:
        """Nothing but loading."""
        return {}

    def contents(self, step: int) -> list[dict[str, Any]]:
        """The memory that they were drawn by."""
        return [{"memory": self._memory[step]}]

    def state(self, step: int) -> dict[str, Any]:
        """The memory before the batch of `step`, which may have been made."""
        return {"step": step, "memory": self._memory[step]}

    def restore(self, state: dict[str, Any]) -> int:
        """Goes on with that memory."""
        self._memory = {state["step"]: state["memory"]}
        return state["step"]

    def continue_from(self, state: dict[str, Any]) -> int:
        """The same: there are no settings to change."""
        return self.restore(state)

    def close(self) -> None:
        """Nothing works ahead."""


def drawn_job(out: Path) -> TrainJob:
    """The tiny job on such batches."""
    return replace(tiny_job(out, RUN), batches=DrawnBatches(RUN.global_batch_size))


if __name__ == "__main__":
    folder, kill_at, kill_after = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    run_job(drawn_job(folder), KillAt(kill_at, folder / CHECKPOINTS / kill_after))
