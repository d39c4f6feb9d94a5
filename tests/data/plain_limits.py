"""The plain double of the grouping by Daft that finds which keys repeat (`daft_adapter.write_limits`)."""

from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

LIMITS = ("first_half", "second_half", "place")


def plain_limits(keys: Path, most: int, out: Path) -> None:
    """The keys that more than `most` rows have, and the place of the `most`-th, by dictionaries."""
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(keys.iterdir())])
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for first, second, place in zip(*(rows[name].to_pylist() for name in LIMITS), strict=True):
        places[first, second].append(place)
    found = [(*key, sorted(own)[most - 1]) for key, own in sorted(places.items()) if len(own) > most]
    for at, name in enumerate(LIMITS):
        np.array([row[at] for row in found], np.int64 if name == "place" else np.uint64).tofile(out / f"{name}.bin")


class PlainProcess:
    """In the place of the process in which Daft runs."""

    def __init__(self, address: str | None) -> None:
        assert address is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def write_limits(self, keys: Path, most: int, out: Path, num_parts: int) -> None:
        """`plain_limits`."""
        del num_parts
        plain_limits(keys, most, out)


@contextmanager
def grouped_plainly() -> Generator[None]:
    """Keys of lines and passages are grouped without Daft, whose process takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifecycle.data.selecting.repeats.DaftProcess", PlainProcess)
        yield
