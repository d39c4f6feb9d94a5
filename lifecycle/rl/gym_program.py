"""reasoning-gym's entries and scorers. Some scorers evaluate an answer as Python: they run in a closed process only."""

import importlib
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError, nearest
from lifecycle.core.isolation.confine import Limits, confine

CHILD_CPU_S = 3600  # of a process that scores many answers; each has a limit of its own
GYM: Any = importlib.import_module("reasoning_gym")
TASKS: Any = importlib.import_module("reasoning_gym.factory").DATASETS
_closed: list[Path] = []


def entry_of(task: str, settings: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """A task of one seed and its only entry; `settings` is JSON. Raises `ConfigError` for what is refused."""
    if task not in TASKS:
        raise ConfigError(f"reasoning-gym has no task {task!r}{nearest(task, TASKS)}")
    try:
        dataset = GYM.create_dataset(task, seed=seed, size=1, **json.loads(settings))
        return dataset, dataset[0]
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"reasoning-gym's task {task!r} refuses its settings: {error}") from None


@lru_cache(maxsize=256)
def _known_entry(task: str, settings: str, seed: int) -> tuple[Any, dict[str, Any]]:
    return entry_of(task, settings, seed)


def score(item: dict[str, Any], limits: Limits) -> float:
    """The scorer's value of `answer` for the entry that `task`, `settings` and `seed` make."""
    if not _closed:
        _closed.append(Path.cwd())
        confine(replace(limits, cpu_s=CHILD_CPU_S), _closed[0])
    dataset, entry = _known_entry(item["task"], item["settings"], item["seed"])
    return float(dataset.score_answer(item["answer"], entry))
