"""Evaluation tasks: a few lines of YAML that name local rows and how to score them.

A task's `kind` selects its settings, the columns of its rows and its score. Built-in kinds are in `evals/kinds/`, one
file each; other packages add theirs with `register`. `map` makes a kind's columns from published ones.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, StrictInt, field_validator, model_validator

from lifecycle.core.config import VariantSection, digest, nearest
from lifecycle.core.progress import Progress
from lifecycle.evals.results import EvalResult
from lifecycle.evals.subject import Subject
from lifecycle.evals.templates import compiled
from lifecycle.training.metric_names import HELD_OUT

type Mapped = StrictInt | str | tuple[str, ...]  # a template or a list of them; a number is itself

WHICH_ROWS = {"name", "rows", "limit", "head", "max_unusable", "shots_from"}  # part of no row's score
# Left out of a definition while they have their default, so that results made before these settings stay comparable.
ADDED = ("map", "shots", "shot_separator", "delimiter", "beams")


@dataclass(frozen=True)
class TaskRow:
    """A row with its `FILE:LINE` for messages, and the solved examples that precede it in its prompt.

    The id is a hash of the columns that decide its score, and of its examples' ids.
    """

    id: str
    columns: Mapping[str, Any]
    where: str
    shots: tuple["TaskRow", ...] = ()


class TaskConfig(VariantSection):
    """One task. `rows` is a file (a pattern, for Parquet), or `@STAGE/FILE`: a file of STAGE's artifact."""

    variant_key: ClassVar[str] = "kind"
    columns: ClassVar[tuple[str, ...]]  # that a row must have; its id is a hash of them
    gold: ClassVar[str] = ""  # the column of the right answer, if there is one

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    kind: str
    rows: str
    limit: Annotated[
        int | None,
        Field(ge=2, description="score this many rows, chosen by the hash of their content: the same in any order"),
    ] = None
    head: Annotated[int | None, Field(ge=2, description="score the first rows of the file, this many")] = None
    max_unusable: Annotated[
        float, Field(ge=0, le=1, description="the largest share of rows that may be faulty; these are skipped")
    ] = 0.05
    map: Annotated[
        dict[str, Mapped],
        Field(default_factory=dict, description="this kind's columns, as templates over the columns of the file"),
    ]

    @classmethod
    def variants(cls) -> Mapping[str, type["TaskConfig"]]:
        """The registered kinds of tasks by name."""
        return _KINDS

    @field_validator("name")
    @classmethod
    def _name_is_no_held_out_metrics(cls, name: str) -> str:
        if name.startswith(HELD_OUT):
            raise ValueError(f"{name!r} begins with {HELD_OUT}, as metrics on held-out text do; choose another name")
        return name

    @model_validator(mode="after")
    def _choice_of_rows(self) -> Self:
        if self.limit is not None and self.head is not None:
            raise ValueError("limit (rows chosen by hash) and head (the first rows) exclude each other; remove one")
        return self

    @model_validator(mode="after")
    def _map_compiles(self) -> Self:
        for name, value in self.map.items():
            if name not in self.columns:
                raise ValueError(f"map.{name}: this kind has no such column{nearest(name, self.columns)}")
            for source in _templates(value):
                try:
                    compiled(source)
                except ValueError as error:
                    raise ValueError(f"map.{name}: {error}") from None
        return self

    @property
    def definition(self) -> str:
        """The hash of every setting that affects a row's score."""
        added = {name: field for name, field in type(self).model_fields.items() if name in ADDED}
        unset = {n for n, field in added.items() if getattr(self, n) == field.get_default(call_default_factory=True)}
        return digest(self.model_dump(mode="json", exclude=WHICH_ROWS | unset))

    @property
    def read_columns(self) -> dict[str, str]:
        """The file's columns that this task reads, each with the setting or the column that needs it."""
        needed: dict[str, str] = {}
        for name in self.columns:
            sources = _templates(self.map[name]) if name in self.map else None
            names = (name,) if sources is None else (read for source in sources for read in compiled(source).names)
            needed |= dict.fromkeys(names, name if sources is None else f"map.{name}")
        return needed

    def mapped(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """A file's row with this kind's columns; raises `ValueError` for a template that fails."""
        own: dict[str, Any] = {}
        for name, value in self.map.items():
            try:
                filled = [compiled(source).fill(columns) for source in _templates(value)]
            except ValueError as error:
                raise ValueError(f"map.{name}: {error}") from None
            own[name] = value if isinstance(value, int) else filled[0] if isinstance(value, str) else filled
        return {**columns, **own}

    def identity(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """What decides a row's score, JSON-ready: rows that share it are the same row."""
        return {name: columns[name] for name in self.columns}

    @abstractmethod
    def problem(self, columns: Mapping[str, Any]) -> str:
        """The fault in a row's columns, which makes it unusable; empty if there is none."""

    @abstractmethod
    def score(self, rows: Sequence[TaskRow], subject: Subject, progress: Progress) -> EvalResult:
        """The subject's scores on the task's rows."""


_KINDS: dict[str, type[TaskConfig]] = {}


def register(name: str, kind: type[TaskConfig]) -> None:
    """Adds a kind of tasks. Raises `ValueError` if the name is taken."""
    if _KINDS.setdefault(name, kind) is not kind:
        raise ValueError(f"task kind {name!r} is registered already, as {_KINDS[name].__qualname__}")


def is_text(value: Any) -> bool:
    """Whether a value is a non-empty string."""
    return isinstance(value, str) and value != ""


def portable(where: str) -> str:
    """`FILE:LINE` without the folder, for results: these are portable."""
    return Path(where).name


def _templates(value: Mapped) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else () if isinstance(value, int) else value
