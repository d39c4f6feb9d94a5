"""Evaluation tasks: a few lines of YAML that name local rows and how to score them.

A task's `kind` selects its settings, the columns of its rows and its score. Built-in kinds are in `evals/kinds/`, one
file each; other packages add theirs with `register`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from lifecycle.core.config import ConfigError, VariantSection, digest
from lifecycle.core.progress import Progress
from lifecycle.evals.results import EvalResult
from lifecycle.evals.subject import Encoder, Subject

ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@dataclass(frozen=True)
class TaskRow:
    """A row with its `FILE:LINE` for error messages. The id is a hash of the columns that decide its score."""

    id: str
    columns: Mapping[str, Any]
    where: str


class TaskConfig(VariantSection):
    """One task. `rows` is a file (a pattern, for Parquet), or `@STAGE/FILE`: a file of STAGE's artifact."""

    variant_key: ClassVar[str] = "kind"
    columns: ClassVar[tuple[str, ...]]  # that a row must have; its id is a hash of them

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    kind: str
    rows: str
    limit: Annotated[int | None, Field(ge=2)] = None  # this many rows, chosen by the hash of their content

    @classmethod
    def variants(cls) -> Mapping[str, type["TaskConfig"]]:
        """The registered kinds of tasks by name."""
        return _KINDS

    @property
    def definition(self) -> str:
        """The hash of every setting that affects a row's score."""
        return digest(self.model_dump(mode="json", exclude={"name", "rows", "limit"}))

    @abstractmethod
    def problem(self, columns: Mapping[str, Any]) -> str:
        """The error in a row's columns; empty if there is none."""

    @abstractmethod
    def score(self, rows: Sequence[TaskRow], subject: Subject, progress: Progress) -> EvalResult:
        """The subject's scores on the task's rows."""


_KINDS: dict[str, type[TaskConfig]] = {}


def register(name: str, kind: type[TaskConfig]) -> None:
    """Adds a kind of tasks. Raises `ValueError` if the name is taken."""
    if _KINDS.setdefault(name, kind) is not kind:
        raise ValueError(f"task kind {name!r} is registered already, as {_KINDS[name].__qualname__}")


class PromptTaskConfig(TaskConfig):
    """A task with a prompt: `template` is jinja2 over the row's columns; by default, one column unchanged."""

    default_template: ClassVar[str]

    template: str = ""
    chat: bool = True  # the rendered template is a user's turn; False: plain text to continue

    @model_validator(mode="after")
    def _template_compiles(self) -> Self:
        try:
            ENVIRONMENT.from_string(self.template)
        except TemplateError as error:
            raise ValueError(f"task {self.name!r}: the template is not valid jinja2: {error}") from None
        return self

    def prompt(self, row: TaskRow) -> str:
        """The row's prompt, rendered from the template."""
        try:
            return ENVIRONMENT.from_string(self.template or self.default_template).render(**row.columns)
        except TemplateError as error:
            columns = list(row.columns)
            raise ConfigError(f"{row.where}: task {self.name!r}: template: {error}; columns: {columns}") from None

    def prompt_ids(self, row: TaskRow, encoder: Encoder) -> list[int]:
        """The prompt's ids, with BOS and, in a chat, the opening of the assistant's turn."""
        prompt = self.prompt(row)
        if self.chat:
            return encoder.encode_chat([{"role": "user", "content": prompt}])
        return [encoder.bos_id, *encoder.encode(prompt)]


def is_text(value: Any) -> bool:
    """Whether a value is a non-empty string."""
    return isinstance(value, str) and value != ""
