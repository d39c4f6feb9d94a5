"""Prompts to answer: batches of rollouts, and the reward of held-out prompts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.episodes import Episodes
from lifecycle.rl.hook import LogRollouts, means
from lifecycle.rl.measured import measured_columns
from lifecycle.rl.openings import Conversations
from lifecycle.rl.reward_stage import model_reward
from lifecycle.rl.rollouts import Prompt, Sampler
from lifecycle.stages.learner import Learner, LearningRows, encoded_rows, kept, list_dropped
from lifecycle.stages.stage import Inputs
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.rows import RowsReport
from lifecycle.training.hooks.evaluate import Evaluate


def prompt_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Prompts whose completions are sampled and scored."""
    settings = learner.train
    assert isinstance(settings, RolloutConfig)
    if jax.process_count() > 1:
        raise ConfigError(f"objective {settings.objective} samples in one process, and this job has several")
    prompts: dict[str, list[Prompt]] = {}
    reports: dict[str, RowsReport] = {}
    for split in ("train", "heldout"):
        encoded, reports[split] = encoded_rows(learner, inputs, "prompts", split, progress)
        prompts[split] = [Prompt(number, row.ids, row.prompt, row.columns) for number, row in enumerate(encoded)]
    list_dropped(out, reports)
    model = _model(learner, inputs)
    by_model = None
    if settings.reward is not None:
        by_model = model_reward(*learner.named["reward"], settings, learner.mesh)
    player = None if settings.episodes is None else Episodes(settings, Conversations(model.template))
    sampler = Sampler(model, settings, learner.seeds["prompts"], learner.mesh, by_model, player)
    columns = measured_columns(learner.model, settings, learner.mesh, learner.start)
    batches = PolicyBatches(prompts["train"], settings, sampler, learner.seeds["prompts"], columns)
    measure = partial(_heldout_reward, sampler, prompts["heldout"][: settings.eval_prompts])
    hooks = (LogRollouts(batches, out, progress), Evaluate(settings.eval_every, measure))
    return LearningRows(None, settings.epoch_rows(len(prompts["train"])), hooks, kept("prompts", reports), batches)


def _model(learner: Learner, inputs: Inputs) -> Model:
    """The model without its weights, which each step gives."""
    template = ChatTemplate.load(inputs["tokenizer"].path, learner.tokenizer)
    return Model(learner.model, {}, learner.tokenizer, template, SamplingParams(stop_ids=tuple(template.stop_ids)))


def _heldout_reward(sampler: Sampler, prompts: Sequence[Prompt], params: Any) -> dict[str, float]:
    """The mean reward of the likeliest completions of held-out prompts; nothing if no reward says anything of them."""
    return means({"heldout_reward": sampler.answer(0, params, prompts).rewards})
