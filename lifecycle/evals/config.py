"""Evaluation settings. Reading them imports neither JAX nor scipy."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

import lifecycle.evals.kinds  # noqa: F401  registers the built-in kinds
from lifecycle.core.config import Section
from lifecycle.core.numbers import Size
from lifecycle.evals.judging import COMPARE, Judge
from lifecycle.evals.tasks import TaskConfig
from lifecycle.evals.templates import compiled


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


ROWS = "rows"  # in a pair, who answers as the held-out rows do; no stage is called so


class WinRatesConfig(Section):
    """Which training stages' answers to held-out prompts a judge compares, two at a time; `rows` in a stage's place has
    the answers in the rows themselves."""

    # Of the judge: where and how patiently it is asked, which changes no answer.
    HOW_ASKED: ClassVar[frozenset[str]] = frozenset({"base_url", "key_variable", "timeout_s", "tries", "concurrency"})

    pairs: Annotated[tuple[tuple[str, str], ...], Field(min_length=1, description="the first's rate against the other")]
    rows: Literal["chat", "pairs", "labelled", "prompts"]  # held-out rows of this kind, up to the answer
    limit: Annotated[int, Field(ge=2, description="this many, chosen by the hash of their content")] = 200
    max_tokens: Size = 256  # of an answer
    judge: Judge
    template: Annotated[str, Field(description="jinja2 over prompt, first and second")] = COMPARE

    @model_validator(mode="after")
    def _compares_two(self) -> Self:
        names, known = compiled(self.template).names, {"prompt", "first", "second"}
        if missing := known - {"prompt"} - names:
            raise ValueError(f"template: it shows no {{{{ {min(missing)} }}}}, so the judge would not see it")
        if unknown := names - known:
            raise ValueError(f"template: {min(unknown)}: there are prompt, first and second")
        if doubled := next((pair for pair in self.pairs if self.pairs.count(pair) > 1), None):
            raise ValueError(f"pairs: {' and '.join(doubled)} are compared twice; name them once")
        if alone := next((a for a, b in self.pairs if a == b), None):
            raise ValueError(f"pairs: {alone} is compared with itself; name another stage")
        if self.has_references and self.rows == "prompts":
            raise ValueError(f"pairs: rows of prompts have no answers to compare with; leave out {ROWS!r}")
        return self

    @property
    def has_references(self) -> bool:
        """Whether the rows' own answers are compared."""
        return any(ROWS in pair for pair in self.pairs)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages whose answers are compared, each once."""
        return tuple(dict.fromkeys(name for pair in self.pairs for name in pair if name != ROWS))

    def key(self) -> dict[str, Any]:
        """What decides the result, JSON-ready."""
        judge = {name: value for name, value in self.judge.plain().items() if name not in self.HOW_ASKED}
        return self.plain() | {"judge": judge}
