"""Samples of rollouts, beside the run log: some completions with their rewards at each measurement.

A line is `{step, split, version, prompt, completion, reward, rewards}`: `split` is `train` or `heldout`, `version` of
`train` the steps that the weights had taken, `reward` the total, `rewards` the values by name; what no reward says is
null. A restart drops the samples of steps that run again.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.core.distributed import is_writer
from lifecycle.core.progress import Progress
from lifecycle.core.runlog import FULL, ROLLOUTS, rewind
from lifecycle.rl.batch import shown
from lifecycle.rl.rollouts import Scored

TRAIN, HELDOUT = "train", "heldout"
NUM_SAMPLES = 4  # of each split, at a measurement


class Samples:
    """The file of a stage's samples, which the writing process writes."""

    def __init__(self, out: Path, progress: Progress) -> None:
        self._path, self._progress = out / ROLLOUTS, progress

    def rewind(self, step: int) -> None:
        """Drops the samples after `step`, and of a run that starts over all."""
        if is_writer() and self._path.is_file():
            rewind(self._path, step or -1)

    def write(self, step: int, split: str, scored: Scored, numbers: Iterable[int]) -> None:
        """Adds the rollouts with these numbers. On a full disk they are left out, with a note."""
        if not is_writer():
            return
        lines = [json.dumps(_sample(scored, number, step, split), ensure_ascii=False) for number in numbers]
        size = self._path.stat().st_size if self._path.is_file() else 0
        try:
            with self._path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            if error.errno not in FULL:
                raise
            os.truncate(self._path, size)  # no half line, which the next one would follow
            self._progress.note(f"step {step}: {error.strerror}, so its samples are not in {self._path}")


def _sample(scored: Scored, number: int, step: int, split: str) -> dict[str, Any]:
    rollout = scored.rollouts[number]
    values = {name: _plain(each[number]) for name, each in scored.scores.values.items()}
    said = {"prompt": shown(rollout.prompt.text), "completion": rollout.text}
    version = {} if scored.version is None else {"version": scored.version}
    return {
        "step": step,
        "split": split,
        **version,
        **said,
        "reward": _plain(scored.rewards[number]),
        "rewards": values,
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
