"""Which document of a group of duplicates stays: the order of preference among all documents.

Each criterion of `dedup.prefer` gives a document a number, the lowest being the best; of two documents the first
criterion that tells them apart decides, and in the end their order in the sources. So every two documents are in order,
whatever group they meet in, and the choice depends neither on partitions nor on the engine. A document of which a
criterion knows nothing (no time, no score) comes behind all others.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.config import ConfigError, nearest
from lifecycle.data.config import DataConfig
from lifecycle.data.documents import Stretch, num_documents
from lifecycle.data.measures.filters import joined_steps
from lifecycle.data.measures.license_expressions import license_place
from lifecycle.data.selecting.selection import joined
from lifecycle.data.tagging.partitions import tagged_schema

type Numbers = NDArray[np.float64]  # one for each document; lower is better, NaN if it is not known


@dataclass(frozen=True)
class Criterion:
    """A column of the documents, and what makes numbers of it."""

    column: str
    numbers: Callable[[pa.ChunkedArray], Numbers]


def criteria_of(config: DataConfig) -> list[Criterion]:
    """The criteria that the settings name; raises `ConfigError` for a column that is none, or that has no numbers."""
    return [_criterion(name, config) for name in config.dedup.prefer]


def ranks(stretches: Sequence[Stretch], config: DataConfig) -> NDArray[np.int64]:
    """The place of each document in the order of preference, from 0, the best. While it is found, it takes 8 bytes of
    memory for each document and criterion."""
    criteria = criteria_of(config)
    columns = dict.fromkeys(criterion.column for criterion in criteria)
    joins = [step for step in joined_steps(config) if columns.keys() & {*step.columns.names}]
    added = {name for step in joins for name in step.columns.names}
    read = [*(name for name in columns if name not in added), *(["id"] if joins else [])]
    found = np.empty((len(criteria), num_documents(stretches)))
    for stretch in stretches:
        documents = joined(stretch.read(read), joins)
        for row, criterion in zip(found, criteria, strict=True):
            row[stretch.first : stretch.end] = criterion.numbers(documents[criterion.column])
    order = np.lexsort((np.arange(found.shape[1]), *found[::-1]))  # the last key counts first; NaN comes last
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def _criterion(name: str, config: DataConfig) -> Criterion:
    match name.split():
        case ["source"]:
            return _by_name("source", partial(_place_of_source, [source.name for source in config.sources]))
        case ["license"]:
            return _by_name("license", partial(_place_of_license, config.rights.licenses))
        case ["longest" | "shortest" as size]:
            return _by_number("text_bytes", size == "longest")
        case ["newest" | "oldest" as age]:
            return Criterion("time", partial(_times, is_newest=age == "newest"))
        case [best, column]:
            joins = [field for step in joined_steps(config) for field in step.columns]
            _require_numbers(name, column, [*tagged_schema(config), *joins])
            return _by_number(column, best == "highest")
    raise AssertionError(name)


def _by_name(column: str, place: Callable[[str], float]) -> Criterion:
    """By the place of a name, of which there are few."""

    def numbers(names: pa.ChunkedArray) -> Numbers:
        places = {name: place(name) for name in names.unique().to_pylist()}
        return np.array([places[name] for name in names.to_pylist()], np.float64)

    return Criterion(column, numbers)


def _by_number(column: str, is_highest: bool) -> Criterion:
    def numbers(values: pa.ChunkedArray) -> Numbers:
        found = values.cast(pa.float64()).to_numpy()
        return -found if is_highest else found

    return Criterion(column, numbers)


def _times(times: pa.ChunkedArray, is_newest: bool) -> Numbers:
    """Seconds since 1970; a year or a month alone counts as its beginning."""
    shown = [None if time is None else time.removesuffix("Z") for time in times.to_pylist()]
    moments = np.array(shown, "datetime64[s]")
    seconds = np.where(np.isnat(moments), np.nan, moments.astype(np.float64))
    return -seconds if is_newest else seconds


def _place_of_source(sources: Sequence[str], name: str) -> float:
    return sources.index(name)


def _place_of_license(allowed: Sequence[str], expression: str) -> float:
    """In the order of `data.rights.licenses`; then come others, and last those that are not known."""
    return license_place(expression, allowed)


def _require_numbers(name: str, column: str, fields: Iterable[pa.Field]) -> None:
    numeric = [field.name for field in fields if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]
    if column not in numeric:
        raise ConfigError(
            f"data.dedup.prefer: {name!r}: documents have no column of numbers {column!r}{nearest(column, numeric)}"
        )
