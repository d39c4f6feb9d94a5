"""Evaluation settings. Reading them imports neither JAX nor scipy."""

from typing import Self

from pydantic import SerializeAsAny, model_validator

import lifecycle.evals.kinds  # noqa: F401  registers the built-in kinds
from lifecycle.core.config import Section
from lifecycle.evals.tasks import TaskConfig


class EvalConfig(Section):
    """The tasks of the evaluate stage."""

    tasks: tuple[SerializeAsAny[TaskConfig], ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"two tasks are named {sorted(doubled)[0]!r}; give each a name of its own")
        return self
