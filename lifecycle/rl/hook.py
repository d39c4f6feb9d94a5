"""What is told of rollouts: metrics of each step under TRL's names, samples with their rewards, and warnings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.core.distributed import is_writer
from lifecycle.core.progress import Progress
from lifecycle.rl.batch import shown
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.episodes import episode_metrics
from lifecycle.rl.rollouts import Scored
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.run import TrainingRun

SAMPLES = "rollouts.jsonl"  # beside the run log: some samples with their rewards, at each measurement
NUM_SAMPLES = 4


class LogRollouts(Hook):
    """Logs what a step's completions were."""

    def __init__(self, batches: PolicyBatches, out: Path, progress: Progress) -> None:
        self._batches, self._out, self._progress = batches, out, progress
        self._warned: set[str] = set()

    def after_step(self, run: TrainingRun) -> None:
        """Of the step that has just been taken."""
        scored = self._batches.newest(run.step - 1)
        if scored is None:
            return
        size = self._batches.group_size
        if run.step % run.job.train.log_every == 0 or run.is_last:
            run.write(**metrics_of(scored, size))
        for name, reasons in scored.scores.faults.items():
            self._warn_of_faults(name, reasons, len(scored.rollouts), run.step)
        if is_writer() and (run.step % run.job.train.eval_every == 0 or run.is_last):
            self._write_samples(scored, run.step, size)

    def _warn_of_faults(self, name: str, reasons: Mapping[str, int], completions: int, step: int) -> None:
        """Once for each reward and kind of reason; how often it happens is logged."""
        for reason, count in reasons.items():
            if (kind := f"{name}: {reason.partition(':')[0]}") not in self._warned:
                self._warned.add(kind)
                self._progress.note(f"step {step}: reward {name}: {reason}: {count} of {completions} completions")

    def _write_samples(self, scored: Scored, step: int, size: int) -> None:
        with (self._out / SAMPLES).open("a", encoding="utf-8", newline="\n") as file:
            for number in range(0, min(len(scored.rollouts), NUM_SAMPLES * size), size):
                file.write(json.dumps(_sample(scored, number, step), ensure_ascii=False) + "\n")


def _sample(scored: Scored, number: int, step: int) -> dict[str, Any]:
    rollout = scored.rollouts[number]
    values = {"reward": scored.rewards, **scored.scores.values}
    of_each = {name: None if np.isnan(each[number]) else float(each[number]) for name, each in values.items()}
    return {"step": step, "prompt": shown(rollout.prompt.text), "completion": rollout.text} | of_each


def metrics_of(scored: Scored, group_size: int) -> dict[str, float]:
    """A step's metrics: rewards, how many groups have no spread, and lengths; what reward functions logged, as
    `logged/NAME`. Single samples are compared with each other: then the batch is one group. What no completion has a
    value for is left out."""
    rewards = scored.rewards.reshape((-1, group_size) if group_size > 1 else (1, -1))
    lengths = np.array([sum(rollout.is_own) for rollout in scored.rollouts])
    is_scored = ~np.isnan(rewards)
    groups = [row[there] for row, there in zip(rewards, is_scored, strict=True) if there.any()]
    spread = [np.std(group, ddof=min(1, len(group) - 1)) for group in groups]
    found = {
        **means({"reward": rewards, "reward_std": np.array(spread)}),
        "frac_reward_zero_std": 1 - float(np.sum(~np.isclose(spread, 0))) / len(rewards),
        "frac_unscored": 1 - float(is_scored.mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(np.mean([rollout.is_cut for rollout in scored.rollouts])),
        "generation_s": scored.generation_s,
        "reward_s": scored.reward_s,
    }
    found |= means({f"rewards/{name}/mean": np.array(values) for name, values in scored.scores.values.items()})
    found |= episode_metrics(scored.rollouts)
    for name, reasons in scored.scores.faults.items():
        found[f"rewards/{name}/faults"] = float(sum(reasons.values()))
    return found | {f"logged/{name}": float(value) for name, value in scored.scores.metrics.items()}


def means(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The means of the values that are there, of columns that have some."""
    there = {name: values[~np.isnan(values)] for name, values in columns.items()}
    return {name: float(values.mean()) for name, values in there.items() if len(values)}
