"""Batches of which a share is the student's own answers, for on-policy distillation.

Each step is on the rows' answers, or on answers that the weights before it give to prompts of the same rows: a draw
from the run's seed and the step decides, as in TRL's GKD. What must hold: the batch of a step follows from the weights,
the seed and the state; a step on own answers passes over no row, and one on rows over no prompt.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lifecycle.core.config import digest
from lifecycle.model.params import Params
from lifecycle.rl.rounds import PromptOrder
from lifecycle.rl.sampling import Completions, Prompt, Rollout, seed_of
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.batches import BatchSource, HostBatch
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.packing import DataStateError, packed_examples
from lifecycle.training.run import TrainingRun
from lifecycle.training.served import Served

ON_POLICY = "on_policy"  # a metric: whether a step was on the student's own answers


class StepDraws:
    """Which steps from `first` on are on own answers."""

    def __init__(self, share: float, seed: int, first: int = 0) -> None:
        self._share, self._seed, self._first = share, seed, first
        self._own = [0]  # of the steps from `first` on, how many, by the number of steps

    def is_own(self, step: int) -> bool:
        """Whether a step is."""
        return seed_of(self._seed, step) < self._share * 2**64

    def before(self, step: int) -> tuple[int, int]:
        """How many steps from `first` to the one before `step` are on own answers, and how many on rows."""
        num = step - self._first
        assert num >= 0, f"step {step} comes before the state's {self._first}"
        while len(self._own) <= num:
            self._own.append(self._own[-1] + self.is_own(self._first + len(self._own) - 1))
        return self._own[num], num - self._own[num]


class StudentBatches:
    """The batches of a stage that learns on its own answers too. `rows`: those of the others."""

    def __init__(
        self,
        rows: BatchSource,
        prompts: Sequence[Prompt],
        train: DistillationConfig,
        completions: Completions,
        served: Served,
        seed: int,
        held: Sequence[int] | None = None,
    ) -> None:
        """`served`: from the state's parameters to those that its steps compute with. `held`: this process's rows of a
        batch; None: all."""
        assert train.answering is not None
        self._held = slice(None) if held is None else list(held)
        self._rows, self._train, self._answering = rows, train, train.answering
        self._completions, self._served, self._seed = completions, served, seed
        self._order = PromptOrder(prompts, seed)
        self._draws, self._first_row, self._place = StepDraws(self._answering.share, seed), 0, 0
        self._told: dict[int, dict[str, float]] = {}  # of the newest two steps: one is made while the last one runs
        self.fingerprint = digest([ON_POLICY, seed, [list(prompt.ids) for prompt in prompts]])

    def batch(self, step: int, params: Params) -> HostBatch:
        """The rows of `step`, or answers that these weights give."""
        self._told = dict([*self._told.items()][-1:])
        if not self._draws.is_own(step):
            self._told[step] = {ON_POLICY: 0.0}
            return self._rows.batch(self._row_step(step), params)
        jax.block_until_ready(params)  # the step that makes them is no part of the sampling's time
        began = time.perf_counter()
        answer = self._completions.of(self._served(params))
        prompts = self._prompts(step)
        seeds = [seed_of(self._seed, step, place, 0) for place in range(len(prompts))]
        answers = answer(prompts, list(map(self._completions.drawn_with, seeds)))
        self._told[step] = _told(answers) | {"generation_s": time.perf_counter() - began}
        sizes = self._train.seq_len, self._train.global_batch_size, self._train.grad_accum
        batch = packed_examples(list(map(_example, answers)), *sizes)
        return {name: column[self._held] for name, column in batch.items()}

    def _prompts(self, step: int) -> list[Prompt]:
        return self._order.take(self._prompt_place(step), self._answering.prompts_per_step)

    def _prompt_place(self, step: int) -> int:
        return self._place + self._draws.before(step)[0] * self._answering.prompts_per_step

    def _row_step(self, step: int) -> int:
        """Which batch of the rows `step` takes, or the next one that does."""
        return self._first_row + self._draws.before(step)[1]

    def told(self, step: int) -> Mapping[str, float]:
        """What is logged of a step, if it is at hand."""
        return self._told.get(step, {})

    def spent(self, step: int) -> Mapping[str, float]:
        """The seconds of sampling."""
        told = self.told(step)
        return {"generation": told["generation_s"]} if "generation_s" in told else self._rows.spent(step)

    def contents(self, step: int) -> list[dict[str, Any]]:
        """The prompts of a step, or what is in its rows."""
        if self._draws.is_own(step):
            return [{"prompts": [prompt.number for prompt in self._prompts(step)]}]
        return self._rows.contents(self._row_step(step))

    def state(self, step: int) -> dict[str, Any]:
        """The step, the place in the order of prompts, and the state of the rows."""
        rows = self._rows.state(self._row_step(step))
        return {"step": step, "source": self.fingerprint, "place": self._prompt_place(step), "rows": rows}

    def restore(self, state: dict[str, Any]) -> int:
        """The state's step; raises `DataStateError` for other prompts or rows."""
        return self._go_on(state, self._rows.restore(state["rows"]))

    def continue_from(self, state: dict[str, Any]) -> int:
        """As `restore`, with batches of another size."""
        return self._go_on(state, self._rows.continue_from(state["rows"]))

    def _go_on(self, state: dict[str, Any], row_step: int) -> int:
        step = state["step"]
        if state["source"] != self.fingerprint:
            raise DataStateError(
                f"the checkpoint at step {step} was made from other prompts; restore them or start a new run"
            )
        self._draws = StepDraws(self._answering.share, self._seed, step)
        self._first_row, self._place = row_step, state["place"]
        return step

    def close(self) -> None:
        """Ends what the rows prefetch with."""
        self._rows.close()


def _example(answer: Rollout) -> EncodedRow:
    """A prompt with its answer, which is learned as far as it goes."""
    num = len(answer.prompt.ids)
    return EncodedRow([*answer.prompt.ids, *answer.ids], [False] * num + [True] * len(answer.ids))


def _told(answers: Sequence[Rollout]) -> dict[str, float]:
    lengths = np.array([len(answer.ids) for answer in answers])
    return {
        ON_POLICY: 1.0,
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(np.mean([answer.is_cut for answer in answers])),
    }


class LogAnswers(Hook):
    """Logs whether a step was on own answers, and what these were."""

    def __init__(self, batches: StudentBatches) -> None:
        self._batches = batches

    def after_step(self, run: TrainingRun) -> None:
        """Of the step that has just been taken."""
        told = self._batches.told(run.last_batch)
        if told and (run.step % run.job.train.log_every == 0 or run.is_last):
            run.write(**told)
