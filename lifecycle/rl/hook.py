"""What is told of rollouts: metrics of each step, samples with their rewards, faults of rewards; and how held-out
prompts are answered."""

from collections.abc import Mapping, Sequence

import numpy as np

from lifecycle.core.progress import Progress
from lifecycle.model.params import Params
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.metrics import means
from lifecycle.rl.rollouts import Sampler, Scored
from lifecycle.rl.samples import HELDOUT, TRAIN, Samples, samples_of
from lifecycle.rl.sampling import Prompt
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.metric_names import HELD_OUT
from lifecycle.training.run import TrainingRun


class LogRollouts(Hook):
    """Logs what a step's completions were."""

    def __init__(self, batches: PolicyBatches, samples: Samples, progress: Progress) -> None:
        self._batches, self._progress, self._samples = batches, progress, samples
        self._warned: set[str] = set()

    def start(self, run: TrainingRun) -> None:
        """Drops the samples of steps that will run again."""
        self._samples.rewind(run.step)

    def after_step(self, run: TrainingRun) -> None:
        """Of the step that has just been taken."""
        made = self._batches.at_hand(run.last_batch)
        if made is None:
            return
        if run.step % run.job.train.log_every == 0 or run.is_last:
            run.write(**made.metrics)
        if run.step % run.job.train.eval_every == 0 or run.is_last:
            self._samples.write(run.step, TRAIN, made.samples)
        if made.scored is not None:  # not sampled before a restart, when faults were told
            for name, reasons in made.scored.scores.faults.items():
                self._warn_of_faults(name, reasons, len(made.scored.rollouts), run.step)

    def _warn_of_faults(self, name: str, reasons: Mapping[str, int], completions: int, step: int) -> None:
        """Once for each reward and kind of reason; how often it happens is logged."""
        for reason, count in reasons.items():
            if (kind := f"{name}: {reason.partition(':')[0]}") not in self._warned:
                self._warned.add(kind)
                self._progress.note(f"step {step}: reward {name}: {reason}: {count} of {completions} completions")


class AnswerHeldout(Evaluate):
    """Logs the rewards of the likeliest completions of held-out prompts, and how long they are; keeps some of them. It
    comes after `LogRollouts`. What no reward says anything of is left out."""

    def __init__(self, every: int, sampler: Sampler, prompts: Sequence[Prompt], samples: Samples) -> None:
        super().__init__(every, self._answered)
        self._sampler, self._prompts, self._samples = sampler, prompts, samples
        self._newest: Scored | None = None

    def _answered(self, params: Params) -> dict[str, float]:
        self._newest = self._sampler.answer(0, params, self._prompts)
        return answered_metrics(self._newest)

    def _log(self, run: TrainingRun) -> None:
        super()._log(run)
        assert self._newest is not None
        self._samples.write(run.step, HELDOUT, samples_of(self._newest, 1))


def answered_metrics(scored: Scored) -> dict[str, float]:
    """Of answers to held-out prompts: the total reward, each reward if there are several, and the length."""
    values = {"reward": scored.rewards}
    if len(scored.scores.values) > 1:
        values |= {f"rewards/{name}/mean": np.array(each) for name, each in scored.scores.values.items()}
    values["completions/mean_length"] = np.array([float(sum(rollout.is_own)) for rollout in scored.rollouts])
    return {f"{HELD_OUT}{name}": mean for name, mean in means(values).items()}
