"""Prompts to answer: batches of rollouts, and the reward of held-out prompts."""

from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lifecycle.core.progress import Progress
from lifecycle.parallel.placement import rows_of_process
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.episodes import Episodes
from lifecycle.rl.hook import AnswerHeldout, LogRollouts
from lifecycle.rl.measured import measured_columns
from lifecycle.rl.openings import Conversations
from lifecycle.rl.reward_stage import model_reward
from lifecycle.rl.rollouts import Sampler
from lifecycle.rl.samples import Samples
from lifecycle.rl.sampling import Prompt
from lifecycle.stages.learner import Learner, LearningRows, encoded_rows, kept, list_dropped
from lifecycle.stages.stage import Inputs
from lifecycle.stages.student_rows import blank_model
from lifecycle.text.row_encoder import EncodedPrompt
from lifecycle.text.rows import RowsReport
from lifecycle.training.checkpoints.agreement import by_writer


def prompt_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Prompts whose completions are sampled and scored."""
    settings = learner.train
    assert isinstance(settings, RolloutConfig)
    prompts: dict[str, list[Prompt]] = {}
    reports: dict[str, RowsReport] = {}
    for split in ("train", "heldout"):
        encoded, reports[split] = _encoded(learner, inputs, split, progress)
        prompts[split] = [Prompt(number, row.ids, row.prompt, row.columns) for number, row in enumerate(encoded)]
    list_dropped(out, reports)
    model = blank_model(learner, inputs)
    by_model = None
    if settings.reward is not None:
        by_model = model_reward(*learner.named["reward"], settings, learner.mesh)
    player = None if settings.episodes is None else Episodes(settings, Conversations(model.template))
    sampler = Sampler(model, settings, learner.seeds["prompts"], learner.mesh, by_model, player)
    columns = measured_columns(learner.model, settings, learner.mesh, learner.start)
    held = rows_of_process(learner.mesh, settings.global_batch_size, jax.process_index())
    batches = PolicyBatches(prompts["train"], settings, sampler, learner.seeds["prompts"], columns, held)
    answered = prompts["heldout"][: settings.eval_prompts]
    samples = Samples(out, progress)
    hooks = (
        LogRollouts(batches, samples, progress),
        AnswerHeldout(settings.eval_every, sampler, answered, samples),
    )
    return LearningRows(None, settings.epoch_rows(len(prompts["train"]), 0), hooks, kept("prompts", reports), batches)


def _encoded(
    learner: Learner, inputs: Inputs, split: str, progress: Progress
) -> tuple[list[EncodedPrompt], RowsReport]:
    """The prompts of a side. Episodes begin with what an environment says, and environments live in the process that
    writes: it tells the others of its job."""
    settings = learner.train
    encode = partial(encoded_rows, learner, inputs, "prompts", split, progress)
    if not isinstance(settings, RolloutConfig) or settings.episodes is None or jax.process_count() == 1:
        return encode()

    def plain() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        rows, report = encode()
        return [asdict(row) for row in rows], asdict(report)

    rows, report = by_writer(plain)
    return [EncodedPrompt(**row) for row in rows], RowsReport(**report | {"dropped": Counter(report["dropped"])})
