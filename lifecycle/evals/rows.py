"""Rows of evaluation tasks, read and checked: JSON lines, or Parquet files of documents.

A faulty row is skipped and counted by file and line. An error is what makes a whole task wrong: no usable row, for
want of a column (a mistake in the task's columns), and more faulty rows than the task's `max_unusable`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError, digest
from lifecycle.core.fetched import local_copy, local_file
from lifecycle.core.file_hashes import hash_files
from lifecycle.core.store import is_url
from lifecycle.core.web_address import is_on_web, shown
from lifecycle.evals.config import EvalConfig
from lifecycle.evals.prompts import ShotTaskConfig
from lifecycle.evals.tasks import TaskConfig, TaskRow, portable

PLACES = ("rows", "shots_from")  # settings of a task that name files
NAMED = 3  # faulty rows that an error names; results name all

type Line = tuple[str, dict[str, Any] | str]  # FILE:LINE, and its row or its fault


@dataclass(frozen=True)
class TaskRows:
    """The rows to score; `skipped` has a line for each faulty one, `doubtful` for each that contradicts another.

    Rows contradict each other if only their right answers differ: all but one of them are wrong, and nobody here knows
    which, so they are scored, and named.
    """

    rows: list[TaskRow]
    skipped: list[str]
    doubtful: list[str]
    num_read: int

    @property
    def notes(self) -> list[str]:
        """A line for people about the skipped rows, and one about the doubtful ones."""
        about = {"cannot be used and are skipped": self.skipped, "contradict another row": self.doubtful}
        total = f"{self.num_read:,} rows"
        return [f"{len(lines):,} of {total} {what}; first: {lines[0]}" for what, lines in about.items() if lines]


def read_rows(task: TaskConfig, inputs: Mapping[str, Path]) -> TaskRows:
    """The task's rows; `inputs`: artifact folders by stage, for `@STAGE/...`.

    Raises `ConfigError` for too large a share of faulty rows, with the first ones' file and line, for a column that no
    row has, and for fewer than two rows.
    """
    usable, skipped = _usable(task, _row_files(task, inputs))
    scored = _chosen(task, _without_shots(task, usable))
    if len(scored) < 2:
        left = f" after {task.shots} for its prompts" if isinstance(task, ShotTaskConfig) and task.shots else ""
        raise ConfigError(
            f"task {task.name!r}: {len(scored)} row(s) in {shown(task.rows)}{left}; a task needs at least two"
        )
    rows = _with_shots(task, scored, usable)
    return TaskRows(rows, skipped, _doubtful(task, rows), len(usable) + len(skipped))


def local_files(config: EvalConfig) -> dict[str, list[Path]]:
    """The row files of each task; tasks whose rows another stage makes are left out."""
    return {task.name: _row_files(task, {}) for task in config.tasks if not task.rows.startswith("@")}


def task_settings(task: TaskConfig) -> dict[str, Any]:
    """A task's settings for the key of an evaluation's artifact, JSON-ready: without the places of the user's files,
    which are in the key with their names and contents (`local_rows`)."""
    return {name: value for name, value in task.plain().items() if name not in PLACES or str(value).startswith("@")}


def local_rows(config: EvalConfig) -> dict[str, str]:
    """The hash of each task's row files and of its examples' file, `TASK.shots`, for the key of the evaluation's
    artifact; rows in artifacts have their own hash."""
    files_by_name = local_files(config)
    for task in config.tasks:
        if isinstance(task, ShotTaskConfig) and task.shots_from is not None:
            files_by_name[f"{task.name}.shots"] = _own_files(task, task.shots_from)
    return {name: hash_files(files[0].parent, [file.name for file in files]) for name, files in files_by_name.items()}


def _usable(task: TaskConfig, files: Sequence[Path]) -> tuple[list[TaskRow], list[str]]:
    """The rows without a fault, and a line about each other one; raises `ConfigError` if these are too many."""
    lines = list(_read_files(task, files))
    rows: dict[str, TaskRow] = {}
    faults: list[tuple[str, str]] = []
    for where, read in lines:
        row = _checked(task, where, read, rows)
        if isinstance(row, str):
            faults.append((where, row))
        else:
            rows[row.id] = row
    if not rows:
        _require_columns(task, files, [row for _, row in lines if not isinstance(row, str)])
    if len(faults) > task.max_unusable * len(lines):
        first = "; ".join(f"{where}: {fault}" for where, fault in faults[:NAMED])
        raise ConfigError(
            f"task {task.name!r}: {len(faults):,} of {len(lines):,} rows cannot be used, a larger share than "
            f"max_unusable={task.max_unusable:g}: {first}; correct them, or allow more"
        )
    return list(rows.values()), [f"{portable(where)}: {fault}" for where, fault in faults]


def _checked(task: TaskConfig, where: str, read: dict[str, Any] | str, rows: Mapping[str, TaskRow]) -> TaskRow | str:
    """A row, or its fault: its own, or that it is in `rows` already."""
    if isinstance(read, str):
        return read
    try:
        columns = task.mapped(read)
    except ValueError as error:
        return str(error)
    if problem := task.problem(columns):
        return problem
    row = TaskRow(digest(task.identity(columns)), columns, where)
    return f"the same row as {portable(rows[row.id].where)}" if row.id in rows else row


def _require_columns(task: TaskConfig, files: Sequence[Path], rows: Sequence[Mapping[str, Any]]) -> None:
    """Of a task without any usable row, raises `ConfigError` for a column that no row has: the mistake is in the task's
    settings, not in the rows."""
    known = {name: None for row in rows for name in row}
    for name, user in task.read_columns.items():
        if rows and name not in known:
            fix = f"say which has it: map: {{{name}: '{{{{ COLUMN }}}}'}}" if user == name else f"correct {user}"
            at = f"task {task.name!r}: no row of {files[0]}"
            raise ConfigError(f"{at} has a column `{name}`; its columns: {', '.join(known)}; {fix}")


def _without_shots(task: TaskConfig, usable: list[TaskRow]) -> list[TaskRow]:
    """The rows that may be scored: not those at the end that are examples."""
    if not isinstance(task, ShotTaskConfig) or not task.shots or task.shots_from is not None:
        return usable
    return usable[: -task.shots]


def _chosen(task: TaskConfig, rows: list[TaskRow]) -> list[TaskRow]:
    if task.head is not None:
        return rows[: task.head]
    if task.limit is None or task.limit >= len(rows):
        return rows
    chosen = set(sorted(row.id for row in rows)[: task.limit])
    return [row for row in rows if row.id in chosen]


def _with_shots(task: TaskConfig, scored: list[TaskRow], usable: list[TaskRow]) -> list[TaskRow]:
    """The scored rows with their examples, none of which is scored."""
    if not isinstance(task, ShotTaskConfig) or not task.shots:
        return scored
    shots = usable[-task.shots :]
    if task.shots_from is not None:
        others, _ = _usable(task, _own_files(task, task.shots_from))
        ids = {row.id for row in scored}
        shots = [row for row in others if row.id not in ids][: task.shots]
        if len(shots) < task.shots:
            raise ConfigError(
                f"task {task.name!r}: shots={task.shots}, but shots_from={shown(task.shots_from)} has {len(shots)} "
                "row(s) that are not scored"
            )
    examples = [row.id for row in shots]
    return [TaskRow(digest([row.id, examples]), row.columns, row.where, tuple(shots)) for row in scored]


def _doubtful(task: TaskConfig, rows: Sequence[TaskRow]) -> list[str]:
    """A line about each row that equals an earlier one except for its right answer."""
    first: dict[str, TaskRow] = {}
    lines: list[str] = []
    for row in rows if task.gold else ():
        asked = digest(task.identity(row.columns) | {task.gold: None})
        other = first.setdefault(asked, row)
        if other is not row:
            lines.append(f"{portable(row.where)}: the same row as {portable(other.where)}, but for `{task.gold}`")
    return lines


def _row_files(task: TaskConfig, inputs: Mapping[str, Path]) -> list[Path]:
    if not task.rows.startswith("@"):
        return _own_files(task, task.rows)
    stage, _, pattern = task.rows[1:].partition("/")
    folders = [inputs[stage]] if stage in inputs else [inputs[n] for n in sorted(inputs) if n.startswith(f"{stage}-")]
    if not folders:  # of several corpora there is none of the name alone, which stands for all
        raise ConfigError(f"task {task.name!r}: rows {task.rows}: no input {stage!r}; known: {sorted(inputs)}")
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise ConfigError(f"task {task.name!r}: rows {task.rows} point outside the artifact")
    return [path for folder in folders for path in _matching(task, folder, pattern)]


def _own_files(task: TaskConfig, pattern: str) -> list[Path]:
    if is_url(pattern):
        return _files_at(task, pattern)
    path = Path(pattern).absolute()
    return _matching(task, path.parent, path.name)


def _files_at(task: TaskConfig, address: str) -> list[Path]:
    """Copies of the files at an address; in object storage its last part may be a pattern."""
    folder, _, pattern = address.rpartition("/")
    if "*" not in pattern or is_on_web(address):
        return [local_file(address)]
    return _matching(task, local_copy(folder, lambda name: fnmatchcase(name, pattern)), pattern)


def _matching(task: TaskConfig, folder: Path, pattern: str) -> list[Path]:
    files = sorted(folder.glob(pattern))
    if not files:
        raise ConfigError(f"task {task.name!r}: no file {folder / pattern}")
    return files


def _read_files(task: TaskConfig, files: Sequence[Path]) -> Iterator[Line]:
    for path in files:
        yield from _read_parquet(path, tuple(task.read_columns)) if path.suffix == ".parquet" else _read_lines(path)


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Line]:
    import pyarrow.parquet as pq  # takes a third of a second: only if there are such rows

    known = pq.read_schema(path).names
    wanted = list(columns) if set(columns) <= set(known) else known  # all, to name them in the error
    for number, row in enumerate(pq.read_table(path, columns=wanted).to_pylist(), 1):
        yield f"{path}:row {number}", row


def _read_lines(path: Path) -> Iterator[Line]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parsed(line)


def _parsed(line: bytes) -> dict[str, Any] | str:
    """A line's row, or its fault."""
    try:
        row = json.loads(line)
        if b"\\u" in line:  # rejects an escaped lone surrogate, which is not valid text
            json.dumps(row, ensure_ascii=False).encode()
    except (json.JSONDecodeError, UnicodeError) as error:
        return f"not a JSON line: {error}"
    return row if isinstance(row, dict) else f"expected an object with columns, got {type(row).__name__}"
