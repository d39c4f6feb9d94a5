"""Evaluation tasks: a few lines of YAML that name local rows and say how to score them.

| kind | row | score |
|---|---|---|
| `bits_per_byte` | `text` | bits per UTF-8 byte of the document, its end included; lower is better |
| `multiple_choice` | `query`, `choices`, `gold` (position of the right one) | 1 if the right choice is the likeliest |
| `generate` | `prompt`, `answer` (one or several that are right) | 1 if the output passes the check |

Rows are JSON lines; documents may be Parquet too. An example's id is the hash of its row's content, so that a changed
row is another example.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow.parquet as pq
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from lifecycle.core.artifact import hash_files
from lifecycle.core.config import ConfigError, Section, digest

type Kind = Literal["bits_per_byte", "multiple_choice", "generate"]

TEMPLATES: dict[str, str] = {"bits_per_byte": "", "multiple_choice": "{{ query }}", "generate": "{{ prompt }}"}
ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


class TaskConfig(Section):
    """One task. `rows` is a file (a pattern, for Parquet), or `@STAGE/FILE`: a file of the artifact that STAGE made."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    kind: Kind
    rows: str
    template: str = ""  # jinja2 over the row's columns; default: the query or the prompt as it is
    chat: bool = True  # the rendered template is a user's turn; otherwise it is plain text to go on from
    per_byte: bool = True  # multiple choice: log-likelihood per byte of the choice decides
    check: Literal["exact", "contains", "regex"] = "exact"
    max_tokens: Annotated[int, Field(ge=1)] = 64
    stop: tuple[str, ...] = ()
    limit: Annotated[int | None, Field(ge=2)] = None  # this many rows, chosen by the hash of their content

    @model_validator(mode="after")
    def _template_compiles(self) -> Self:
        try:
            ENVIRONMENT.from_string(self.template)
        except TemplateError as error:
            raise ValueError(f"task {self.name!r}: the template is not valid jinja2: {error}") from None
        return self

    @property
    def definition(self) -> str:
        """The hash of everything here that decides an example's score."""
        used = {"bits_per_byte": (), "multiple_choice": ("per_byte",), "generate": ("check", "max_tokens", "stop")}
        names = {"kind", *used[self.kind]} | (set() if self.kind == "bits_per_byte" else {"template", "chat"})
        return digest(self.model_dump(mode="json", include=names))


class EvalConfig(Section):
    """The tasks of the evaluate stage."""

    tasks: tuple[TaskConfig, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"two tasks are called {sorted(doubled)[0]!r}; give each a name of its own")
        return self


@dataclass(frozen=True)
class Row:
    """A row with its place, for error messages."""

    id: str
    columns: Mapping[str, Any]
    where: str


def read_rows(task: TaskConfig, inputs: Mapping[str, Path]) -> list[Row]:
    """The task's rows, checked; `inputs`: the folders of the artifacts that `@STAGE/...` may name.

    Raises `ConfigError` naming file and line for broken JSON, missing or mistyped columns, doubled rows, and no rows.
    """
    rows: dict[str, Row] = {}
    for columns, where in _read_files(_row_files(task, inputs)):
        if problem := _problem(task, columns):
            raise ConfigError(f"{where}: task {task.name!r}: {problem}")
        row = Row(digest({name: columns[name] for name in sorted(columns) if name in _CONTENT}), columns, where)
        if row.id in rows:
            raise ConfigError(f"{where}: task {task.name!r}: the same row as {rows[row.id].where}; remove one")
        rows[row.id] = row
    if len(rows) < 2:
        raise ConfigError(f"task {task.name!r}: {len(rows)} row(s) in {task.rows}; a task needs at least two")
    if task.limit is None or task.limit >= len(rows):
        return list(rows.values())
    chosen = set(sorted(rows)[: task.limit])
    return [row for row in rows.values() if row.id in chosen]


def local_files(config: EvalConfig) -> dict[str, list[Path]]:
    """By task, its row files; tasks whose rows another stage makes are left out."""
    return {task.name: _row_files(task, {}) for task in config.tasks if not task.rows.startswith("@")}


def local_rows(config: EvalConfig) -> dict[str, str]:
    """By task, the hash of its row files, for the key of the evaluation's artifact; rows of artifacts have theirs."""
    found = local_files(config)
    return {name: hash_files(files[0].parent, [file.name for file in files]) for name, files in found.items()}


def render_prompt(task: TaskConfig, row: Row) -> str:
    """The prompt of a row by the task's template."""
    try:
        return ENVIRONMENT.from_string(task.template or TEMPLATES[task.kind]).render(**row.columns)
    except TemplateError as error:
        raise ConfigError(f"{row.where}: task {task.name!r}: template: {error}; columns: {list(row.columns)}") from None


def answers(row: Row) -> list[str]:
    """The right answers of a `generate` row."""
    answer = row.columns["answer"]
    return [answer] if isinstance(answer, str) else list(answer)


_CONTENT = {"text", "query", "choices", "gold", "prompt", "answer"}


def _row_files(task: TaskConfig, inputs: Mapping[str, Path]) -> list[Path]:
    if task.rows.startswith("@"):
        stage, _, pattern = task.rows[1:].partition("/")
        if stage not in inputs:
            raise ConfigError(f"task {task.name!r}: rows {task.rows}: no input {stage!r}; known: {sorted(inputs)}")
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ConfigError(f"task {task.name!r}: rows {task.rows} lead out of the artifact")
        folder = inputs[stage]
    else:
        path = Path(task.rows).absolute()
        folder, pattern = path.parent, path.name
    files = sorted(folder.glob(pattern))
    if not files:
        raise ConfigError(f"task {task.name!r}: no file {folder / pattern}")
    return files


def _read_files(files: Sequence[Path]) -> Iterator[tuple[dict[str, Any], str]]:
    for path in files:
        if path.suffix == ".parquet":
            columns = [name for name in ("text",) if name in pq.read_schema(path).names]
            for number, columns_of_row in enumerate(pq.read_table(path, columns=columns).to_pylist()):
                yield columns_of_row, f"{path}:row {number}"
        else:
            yield from _read_json_lines(path)


def _read_json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if b"\\u" in line:  # an escape may be half of a surrogate pair, which is no text
                    json.dumps(row, ensure_ascii=False).encode()
            except (json.JSONDecodeError, UnicodeError) as error:
                raise ConfigError(f"{path}:{number}: not a JSON line: {error}") from None
            if not isinstance(row, dict):
                raise ConfigError(f"{path}:{number}: expected an object with columns, found {type(row).__name__}")
            yield row, f"{path}:{number}"


def _problem(task: TaskConfig, row: Mapping[str, Any]) -> str:
    """What is wrong with a row; empty when nothing is."""
    if task.kind == "bits_per_byte":
        return "" if _is_text(row.get("text")) else "expected a column `text` with some text"
    if task.kind == "multiple_choice":
        return _choices_problem(row)
    if not isinstance(row.get("prompt"), str):
        return "expected a column `prompt` with text"
    wanted = row.get("answer")
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(wanted, list) or not wanted or not all(_is_text(answer) for answer in wanted):
        return "expected a column `answer`: text, or a list of texts of which each is right"
    return _pattern_problem(wanted) if task.check == "regex" else ""


def _choices_problem(row: Mapping[str, Any]) -> str:
    choices, gold = row.get("choices"), row.get("gold")
    if not isinstance(row.get("query"), str):
        return "expected a column `query` with text"
    if not isinstance(choices, list) or len(choices) < 2 or not all(_is_text(choice) for choice in choices):
        return "expected a column `choices`: a list of two texts or more"
    if len(set(choices)) < len(choices):
        return "two choices are the same"
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        return f"expected a column `gold` from 0 to {len(choices) - 1}: the right choice's position; found {gold!r}"
    return ""


def _pattern_problem(patterns: Sequence[str]) -> str:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            return f"answer {pattern!r} is not a regular expression: {error}"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""
