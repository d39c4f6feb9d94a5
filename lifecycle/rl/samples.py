"""Samples of rollouts, beside the run log: some completions with their rewards at each measurement.

A line is `{step, split, version, prompt, completion, reward, rewards}`: `split` is `train` or `heldout`, `version` of
`train` the steps that the weights had taken (batches that were passed over count), `reward` the total, `rewards` the
values by name; what no reward says is null. A restart drops the samples of steps that run again; those of rollouts that
a checkpoint has are in it too.
"""

import json
import os
from collections.abc import Iterable, Mapping
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

    def write(self, step: int, split: str, samples: Iterable[Mapping[str, Any]]) -> None:
        """Adds samples. On a full disk they are left out, with a note."""
        if not is_writer():
            return
        lines = [json.dumps({"step": step, "split": split, **sample}, ensure_ascii=False) for sample in samples]
        size = self._path.stat().st_size if self._path.is_file() else 0
        try:
            with self._path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            if error.errno not in FULL:
                raise
            os.truncate(self._path, size)  # no half line, which the next one would follow
            self._progress.note(f"step {step}: {error.strerror}, so its samples are not in {self._path}")


def samples_of(scored: Scored, group_size: int) -> list[dict[str, Any]]:
    """The first completion of each of the first groups."""
    return [
        _sample(scored, group * group_size) for group in range(min(len(scored.rollouts) // group_size, NUM_SAMPLES))
    ]


def _sample(scored: Scored, number: int) -> dict[str, Any]:
    rollout = scored.rollouts[number]
    values = {name: _plain(each[number]) for name, each in scored.scores.values.items()}
    said = {"prompt": shown(rollout.prompt.text), "completion": rollout.text}
    version = {} if scored.version is None else {"version": scored.version}
    return {**version, **said, "reward": _plain(scored.rewards[number]), "rewards": values}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
