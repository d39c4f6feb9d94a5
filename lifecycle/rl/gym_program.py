"""reasoning-gym's entries and scorers. Some scorers evaluate an answer as Python: each runs in a closed process."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError, nearest
from lifecycle.core.isolation.confine import Limits, confine

GYM: Any = importlib.import_module("reasoning_gym")
TASKS: Any = importlib.import_module("reasoning_gym.factory").DATASETS


def entry_of(task: str, settings: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """A task of one seed and its only entry; `settings` is JSON. Raises `ConfigError` for what is refused."""
    if task not in TASKS:
        raise ConfigError(f"reasoning-gym has no task {task!r}{nearest(task, TASKS)}")
    try:
        dataset = GYM.create_dataset(task, seed=seed, size=1, **json.loads(settings))
        return dataset, dataset[0]
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"reasoning-gym's task {task!r} refuses its settings: {error}") from None


def make(item: Mapping[str, Any], limits: Limits) -> dict[str, str]:
    """The question and an answer of an entry; or why reasoning-gym refuses, for whoever wrote the settings."""
    del limits  # of the process: reasoning-gym's own code is run, and nothing that a model wrote
    try:
        entry = entry_of(item["task"], item["settings"], item["seed"])[1]
    except ConfigError as error:
        return {"refused": str(error)}
    return {"question": entry["question"], "answer": "" if entry["answer"] is None else str(entry["answer"])}


def score(read: Callable[[], dict[str, Any]], limits: Limits) -> float:
    """The scorer's value of `answer` for the entry that `task`, `settings` and `seed` make."""
    item = read()
    confine(limits, Path.cwd())
    dataset, entry = entry_of(item["task"], item["settings"], item["seed"])
    return float(dataset.score_answer(item["answer"], entry))
