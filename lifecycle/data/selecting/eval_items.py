"""Text that must not be trained on: held-out documents, and the texts of evaluation rows."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.core.config import ConfigError
from lifecycle.data.documents import document_names
from lifecycle.data.measures.normalise import normalise
from lifecycle.data.reading.raw import SURROGATES

HELDOUT, EVAL = "heldout_overlap", "eval_overlap"  # reasons
_INNER_MARKS = re.compile(r"(?<=\w)[^\w\s]+(?=\w)")


@dataclass(frozen=True)
class TestItem:
    """A held-out document, or one text of an evaluation row."""

    name: str  # shown in the removed document's detail
    kind: str  # the reason: `HELDOUT` or `EVAL`
    text: str
    tasks: tuple[str, ...] = ()  # that have the row

    __test__ = False  # not a pytest class


def heldout_items(documents: pa.Table) -> list[TestItem]:
    """Held-out documents as test items."""
    texts = zip(document_names(documents), documents["text"].to_pylist(), strict=True)
    return [TestItem(name, HELDOUT, text) for name, text in texts]


def eval_items(files: Iterable[Path]) -> list[TestItem]:
    """An item for every text in the rows of JSONL files, and of Parquet files, of which `text` counts alone if there is
    such a column. A broken row is text too. Raises `ConfigError` for a file that cannot be read.
    """
    return [item for path in files for item in (_eval_parquet if path.suffix == ".parquet" else _eval_file)(path)]


def joined_words(items: Iterable[TestItem]) -> Iterator[TestItem]:
    """Texts of rows as they are without punctuation, where that makes other words of them: `dont`, `250`, `reuse` of
    `don't`, `2.50`, `re-use`. What puts blanks in its place, or other marks, leaves the words as they are."""
    for item in items:
        if item.kind == EVAL and (text := _INNER_MARKS.sub("", item.text)) != item.text:
            yield replace(item, text=text)


def task_items(files: Mapping[str, Sequence[Path]]) -> list[TestItem]:
    """`eval_items` of each task's files, with the names of the tasks; a file that several have is read once."""
    tasks: dict[Path, list[str]] = {}
    for task, own in files.items():
        for path in own:
            tasks.setdefault(path, []).append(task)
    return [replace(item, tasks=tuple(names)) for path, names in tasks.items() for item in eval_items([path])]


def _eval_file(path: Path) -> Iterator[TestItem]:
    try:
        # U+2028 and the like do not end a JSON line; one that is not UTF-8 is a faulty row
        lines = path.read_bytes().decode(errors="replace").split("\n")
    except OSError as error:
        raise ConfigError(
            f"evaluation rows {path}: {error}; they are needed to keep them out of training text"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the task counts it as faulty; its text stays out of training all the same
            row = line
        yield from _items_of(row, f"{path.name}:{number}")


def _eval_parquet(path: Path) -> Iterator[TestItem]:
    try:
        columns = ["text"] if "text" in pq.read_schema(path).names else None  # documents have much besides
        rows = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        problem = str(error).partition("\n")[0]
        raise ConfigError(f"evaluation rows {path}: {problem}; copy the file again") from None
    for number, row in enumerate(rows, 1):
        yield from _items_of(row, f"{path.name}:{number}")


def _items_of(row: Any, name: str) -> Iterator[TestItem]:
    """Each text of a row, normalised as the documents are that it is looked for in."""
    for text in texts_in(row):
        yield TestItem(name, EVAL, normalise(SURROGATES.sub("\ufffd", text), "text")[0].rstrip("\n"))


def texts_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value, depth first."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for element in value:
            yield from texts_in(element)
    elif isinstance(value, dict):
        for element in value.values():
            yield from texts_in(element)
