"""Rows of evaluation tasks, read and checked: JSON lines, or Parquet files of documents."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError, digest
from lifecycle.core.file_hashes import hash_files
from lifecycle.evals.config import EvalConfig
from lifecycle.evals.tasks import TaskConfig, TaskRow


def read_rows(task: TaskConfig, inputs: Mapping[str, Path]) -> list[TaskRow]:
    """The task's rows, checked; `inputs`: artifact folders by stage, for `@STAGE/...`.

    Raises `ConfigError` naming file and line for broken JSON, missing or mistyped columns, duplicate rows, and no rows.
    """
    rows: dict[str, TaskRow] = {}
    for columns, where in _read_files(task, _row_files(task, inputs)):
        if problem := task.problem(columns):
            raise ConfigError(f"{where}: task {task.name!r}: {problem}")
        row = TaskRow(digest({name: columns[name] for name in task.columns}), columns, where)
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
    """The row files of each task; tasks whose rows another stage makes are left out."""
    return {task.name: _row_files(task, {}) for task in config.tasks if not task.rows.startswith("@")}


def local_rows(config: EvalConfig) -> dict[str, str]:
    """The hash of each task's row files, for the key of the evaluation's artifact; rows in artifacts have their own
    hash."""
    files_by_task = local_files(config)
    return {name: hash_files(files[0].parent, [file.name for file in files]) for name, files in files_by_task.items()}


def _row_files(task: TaskConfig, inputs: Mapping[str, Path]) -> list[Path]:
    if task.rows.startswith("@"):
        stage, _, pattern = task.rows[1:].partition("/")
        if stage not in inputs:
            raise ConfigError(f"task {task.name!r}: rows {task.rows}: no input {stage!r}; known: {sorted(inputs)}")
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ConfigError(f"task {task.name!r}: rows {task.rows} point outside the artifact")
        folder = inputs[stage]
    else:
        path = Path(task.rows).absolute()
        folder, pattern = path.parent, path.name
    files = sorted(folder.glob(pattern))
    if not files:
        raise ConfigError(f"task {task.name!r}: no file {folder / pattern}")
    return files


def _read_files(task: TaskConfig, files: Sequence[Path]) -> Iterator[tuple[dict[str, Any], str]]:
    for path in files:
        yield from _read_parquet(path, task.columns) if path.suffix == ".parquet" else _read_json_lines(path)


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    import pyarrow.parquet as pq  # takes a third of a second: only if there are such rows

    known = [name for name in columns if name in pq.read_schema(path).names]
    for number, row in enumerate(pq.read_table(path, columns=known).to_pylist(), 1):
        yield row, f"{path}:row {number}"


def _read_json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if b"\\u" in line:  # rejects an escaped lone surrogate, which is not valid text
                    json.dumps(row, ensure_ascii=False).encode()
            except (json.JSONDecodeError, UnicodeError) as error:
                raise ConfigError(f"{path}:{number}: not a JSON line: {error}") from None
            if not isinstance(row, dict):
                raise ConfigError(f"{path}:{number}: expected an object with columns, got {type(row).__name__}")
            yield row, f"{path}:{number}"
