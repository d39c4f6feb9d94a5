"""Prompts to answer: batches of rollouts, and the reward of held-out prompts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.config import GrpoConfig
from lifecycle.rl.hook import LogRollouts
from lifecycle.rl.measured import measured_columns
from lifecycle.rl.reward_stage import model_reward
from lifecycle.rl.rollouts import Prompt, Sampler
from lifecycle.stages.learner import Learner, LearningRows, encoded_rows, kept, list_dropped
from lifecycle.stages.stage import Inputs
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.row_encoder import EncodedPrompt
from lifecycle.text.rows import RowsReport
from lifecycle.training.hooks.evaluate import Evaluate

TOO_LONG = "the prompt is longer than max_prompt_tokens"


def prompt_rows(learner: Learner, inputs: Inputs, out: Path, progress: Progress) -> LearningRows:
    """Prompts whose completions are sampled and scored."""
    settings = learner.train
    assert isinstance(settings, GrpoConfig)
    if jax.process_count() > 1:
        raise ConfigError(f"objective {settings.objective} samples in one process, and this job has several")
    prompts, reports = {}, {}
    for split in ("train", "heldout"):
        encoded, reports[split] = encoded_rows(learner, inputs, "prompts", split, progress)
        prompts[split] = _prompts(encoded, reports[split], settings.max_prompt_tokens)
    list_dropped(out, reports)
    model = _model(learner, inputs)
    by_model = None
    if settings.reward is not None:
        rewarding, weights = learner.named["reward"]
        if not rewarding.has_score:
            raise ConfigError(f"reward={settings.reward} has no score; name a stage with objective=reward_model")
        by_model = model_reward(rewarding, weights, settings, learner.mesh)
    sampler = Sampler(model, settings, learner.seeds["prompts"], learner.mesh, by_model)
    columns = measured_columns(learner.model, settings, learner.mesh, learner.start)
    batches = PolicyBatches(prompts["train"], settings, sampler, learner.seeds["prompts"], columns)
    measure = partial(_heldout_reward, sampler, prompts["heldout"][: settings.eval_prompts])
    hooks = (LogRollouts(batches, out, progress), Evaluate(settings.eval_every, measure))
    return LearningRows(None, settings.epoch_rows(len(prompts["train"])), hooks, kept("prompts", reports), batches)


def _prompts(encoded: Sequence[EncodedPrompt], report: RowsReport, longest: int) -> list[Prompt]:
    found = []
    for number, row in enumerate(encoded):
        if len(row.ids) <= longest:
            found.append(Prompt(number, row.ids, row.prompt, row.columns))
        else:
            report.drop(report.name(number), TOO_LONG, f" ({len(row.ids)})")
    if not found:
        raise ConfigError(f"{TOO_LONG}={longest}, all of them; raise it")
    return found


def _model(learner: Learner, inputs: Inputs) -> Model:
    """The model without its weights, which each step gives."""
    template = ChatTemplate.load(inputs["tokenizer"].path, learner.tokenizer)
    return Model(learner.model, {}, learner.tokenizer, template, SamplingParams(stop_ids=tuple(template.stop_ids)))


def _heldout_reward(sampler: Sampler, prompts: Sequence[Prompt], params: Any) -> dict[str, float]:
    """The mean reward of the likeliest completions of held-out prompts."""
    scored = sampler.answer(0, params, prompts)
    return {"heldout_reward": float(np.nanmean(scored.rewards))}
