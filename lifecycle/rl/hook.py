"""What is told of rollouts: metrics of each step under TRL's names, samples with their rewards, and warnings."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lifecycle.core.distributed import is_writer
from lifecycle.core.progress import Progress
from lifecycle.rl.batch import shown
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.rollouts import Scored
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.run import TrainingRun

SAMPLES = "rollouts.jsonl"  # beside the run log: some samples with their rewards, at each measurement
NUM_SAMPLES = 4
FLAT, CUT = 0.8, 0.8  # above these shares a step is remarked upon


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
            found = metrics_of(scored, size)
            run.write(**found)
            self._warn(found, run.step)
        if is_writer() and (run.step % run.job.train.eval_every == 0 or run.is_last):
            self._write_samples(scored, run.step, size)

    def _warn(self, found: dict[str, float], step: int) -> None:
        """Once for each kind."""
        remarks = {
            f"{found['frac_reward_zero_std']:.0%} of the groups have equal rewards, from which nothing is learned; "
            "make the prompts neither too hard nor too easy, or sample more per prompt": found["frac_reward_zero_std"]
            > FLAT,
            f"{found['completions/clipped_ratio']:.0%} of the completions are cut off at max_completion_tokens; raise "
            "it": found["completions/clipped_ratio"] > CUT,
        }
        for (remark, is_wrong), kind in zip(remarks.items(), ("flat", "cut"), strict=True):
            if is_wrong and kind not in self._warned:
                self._warned.add(kind)
                self._progress.note(f"step {step}: {remark}")

    def _write_samples(self, scored: Scored, step: int, size: int) -> None:
        with (self._out / SAMPLES).open("a", encoding="utf-8", newline="\n") as file:
            for number in range(0, min(len(scored.rollouts), NUM_SAMPLES * size), size):
                file.write(json.dumps(_sample(scored, number, step), ensure_ascii=False) + "\n")


def _sample(scored: Scored, number: int, step: int) -> dict[str, Any]:
    rollout = scored.rollouts[number]
    of_each = {name: values[number] for name, values in scored.scores.values.items()}
    reward = float(scored.rewards[number])
    return {"step": step, "prompt": shown(rollout.prompt.text), "completion": rollout.text, "reward": reward} | of_each


def metrics_of(scored: Scored, group_size: int) -> dict[str, float]:
    """A step's metrics: rewards, how many groups have no spread, and lengths."""
    rewards = scored.rewards.reshape(-1, group_size)
    lengths = np.array([len(rollout.ids) for rollout in scored.rollouts])
    found = {
        "reward": float(np.nanmean(rewards)),
        "reward_std": float(np.nanmean(np.nanstd(rewards, axis=1, ddof=min(1, group_size - 1)))),
        "frac_reward_zero_std": float(np.isclose(np.nanstd(rewards, axis=1), 0).mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(np.mean([rollout.is_cut for rollout in scored.rollouts])),
        "generation_s": scored.generation_s,
        "reward_s": scored.reward_s,
    }
    for name, values in scored.scores.values.items():
        found[f"rewards/{name}/mean"] = float(np.nanmean(values))
    return found
