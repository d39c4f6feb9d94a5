"""Training's part of the dial: batch, learning rate and token budget from a model's sizes. What is given wins.

The budget is 20 tokens per parameter (Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", table 3).
Batch and learning rate follow from the budget's FLOPs (DeepSeek LLM, Bi et al. 2024, section 3.1), fitted with AdamW
from 1e17 to 2e19 FLOPs and used by that paper up to 1e24. One learning rate serves Muon too, whose updates have Adam's
size here (`training/muon.py`). Only pre-training from fresh weights has such a budget: a stage that goes on from
others, or learns from other rows, says what it takes.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import forward_flops_per_token, num_active_params
from lifecycle.model.dial import DEPTH, Filled, fill_sizes

TOKENS_PER_PARAMETER = 20
MOST_WARMUP = 2000  # steps (DeepSeek LLM, section 2.3)

type Tree = Mapping[str, Any]


def counted_params(model: ModelConfig) -> int:
    """The parameters N of the loss laws: those in a token's products, so with the head, without the embedding."""
    return num_active_params(model) - (0 if model.tie_embeddings else model.vocab_size * model.d_model)


def training_flops(model: ModelConfig, seq_len: int, tokens: float) -> float:
    """The FLOPs C of the laws below: forward and backward without the head, all keys counted (section 3.2). Prediction
    modules are not in them, nor in N: with and without, a model has the same batch, rate and budget."""
    forward = forward_flops_per_token(model.trunk, seq_len, count_causal_half=False)
    forward -= 2 * model.d_model * model.vocab_size
    return 3 * forward * tokens


def batch_tokens(flops: float) -> float:
    """The best batch, in tokens, of a run of this many FLOPs (equation 1)."""
    return 0.2920 * flops**0.3271


def learning_rate(flops: float) -> float:
    """The best peak learning rate of a run of this many FLOPs, at the best batch (equation 1)."""
    return 0.3118 * flops**-0.1250


def fill(tree: Any) -> tuple[Any, tuple[Filled, ...]]:
    """A run's settings, as read from its file, with those of training that its models' depths decide, and all settings
    that depths decide with their rules: the models' sizes are left to `ModelConfig`. Without a depth, or where the
    settings are faulty, which their own checks report, everything is returned as it is."""
    models = dict(_models(tree)) if isinstance(tree, Mapping) else {}
    stages = tree.get("train") if models else None
    if not isinstance(stages, Mapping) or not any(known[1] for known in models.values()):
        return tree, ()
    filled = [_under(at, known) for at, sizes, _ in models.values() for known in sizes]
    changed = dict(stages)
    for name, model in _fresh(stages, next(iter(models))):
        _, sizes, config = models.get(model, ("", (), None))
        if sizes and config is not None:
            own = _fill_stage(stages[name], config)
            changed[name] = _with(stages[name], own)
            filled += [_under(f"train.{name}", known) for known in own]
    return {**tree, "train": changed}, tuple(filled)


def _models(tree: Tree) -> Iterator[tuple[str, tuple[str, tuple[Filled, ...], ModelConfig | None]]]:
    """By name: where a model's settings are, those that its depth decides, and the model, if it can be read."""
    given = tree.get("model")
    if not isinstance(given, Mapping):
        return
    is_one = DEPTH in given or not all(isinstance(item, Mapping) for item in given.values())
    for name, own in {"model": given}.items() if is_one else given.items():
        try:
            model, sizes = ModelConfig.model_validate(own), fill_sizes(own)
        except ValidationError:
            model, sizes = None, ()
        yield name, ("model" if is_one else f"model.{name}", sizes, model)


def _fresh(stages: Tree, first_model: str) -> Iterator[tuple[str, str]]:
    """The stages of next-token prediction from fresh weights, with their models' names."""
    seen: set[str] = set()
    for name, stage in stages.items():
        if isinstance(stage, Mapping):
            model = stage.get("model") or first_model
            start = stage.get("from", None if model in seen else "fresh")
            seen.add(model)
            if stage.get("objective") == "next_token" and start == "fresh":
                yield name, model


def _fill_stage(stage: Tree, model: ModelConfig) -> list[Filled]:
    """The settings that a stage leaves out, by dotted name."""
    seq_len, accum = stage.get("seq_len"), stage.get("grad_accum", 1)
    rows, optimizer = stage.get("global_batch_size", 1), stage.get("optimizer", {})
    if not all(isinstance(number, int) and number > 0 for number in (seq_len, accum, rows)):
        return []
    assert seq_len is not None
    parameters = counted_params(model)
    tokens = TOKENS_PER_PARAMETER * parameters
    flops = training_flops(model, seq_len, tokens)
    best = batch_tokens(flops) / seq_len
    filled = []
    if "global_batch_size" not in stage:
        rows = accum * 2 ** max(0, round(math.log2(best / accum)))
        law = f"0.2920 x FLOPs^0.3271 tokens = {best:,.1f} rows (DeepSeek LLM) to a power of two x grad_accum"
        filled.append(Filled("global_batch_size", rows, law))
    steps = stage.get("steps")
    if steps is None and "epochs" not in stage:
        steps = math.ceil(tokens / (rows * seq_len))
        law = f"{TOKENS_PER_PARAMETER} tokens per parameter, {parameters:,} without the embedding (Hoffmann et al.)"
        filled.append(Filled("steps", steps, law))
    if isinstance(optimizer, Mapping):
        filled += _fill_optimizer(optimizer, flops, rows / best, steps)
    return filled


def _fill_optimizer(optimizer: Tree, flops: float, batch_share: float, steps: Any) -> Iterator[Filled]:
    """`batch_share`: the batch as a share of the best one."""
    if "learning_rate" not in optimizer:
        rate = float(f"{learning_rate(flops) * batch_share**0.5:.3g}")
        law = f"0.3118 x FLOPs^-0.1250 at {flops:.2e} (DeepSeek LLM) x sqrt(batch / the law's) (Malladi et al. 2022)"
        yield Filled("optimizer.learning_rate", rate, law)
    schedule = optimizer.get("schedule", {})
    if isinstance(schedule, Mapping) and "warmup_steps" not in schedule and isinstance(steps, int):
        law = f"2 % of the steps, at most {MOST_WARMUP:,}"
        yield Filled("optimizer.schedule.warmup_steps", min(MOST_WARMUP, steps // 50), law)


def _with(stage: Tree, filled: list[Filled]) -> Tree:
    """The stage with these settings, by dotted name."""
    changed = dict(stage)
    for known in filled:
        *parents, leaf = known.setting.split(".")
        section = changed
        for parent in parents:
            inner = section[parent] = dict(section.get(parent, {}))
            section = inner
        section[leaf] = known.value
    return changed


def _under(at: str, known: Filled) -> Filled:
    return Filled(f"{at}.{known.setting}", known.value, known.rule)
