"""Keys that stand in several places of the documents, such as hashes of lines: found out of core, then looked up.

The keys of all documents go to files, Daft groups them, and what repeats becomes a sorted table of raw numbers, which
all processes share page by page. Memory stays flat, and the result depends on the documents' order alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.core.progress import Progress
from lifecycle.data.documents import Flags
from lifecycle.data.selecting.cuts import CutStretch
from lifecycle.data.selecting.daft_process import DaftProcess
from lifecycle.data.selecting.document_text import DocumentText, read_texts
from lifecycle.data.tagging.engine import Engine, ordered_results

PART_BITS = 16  # the upper ones of a key, by which keys are grouped a part at a time
_KEYS = pa.schema([
    ("part", pa.int32()), ("first_half", pa.uint64()), ("second_half", pa.uint64()), ("place", pa.int64()),
])  # fmt: skip
_KINDS = {"first_half": np.uint64, "second_half": np.uint64, "place": np.int64}  # of the table's columns
NOWHERE = np.iinfo(np.int64).max

type Keys = NDArray[np.uint64]  # [n, 2]: 128 bits each
type Places = NDArray[np.int64]
type KeysOf = Callable[[DocumentText], tuple[Keys, Places]]
type Part = tuple[CutStretch, Flags]


@dataclass(frozen=True)
class Repeats:
    """The keys that stand in more than `most` places, in a folder; they may stay in the first `most` of them."""

    folder: Path

    def last_places(self, keys: Keys) -> Places:
        """The last place in which each key may stay; `NOWHERE`, behind all places, for one that repeats no more."""
        table = _opened(self.folder)
        places = np.full(len(keys), NOWHERE)
        if not len(table["first_half"]):
            return places
        at = np.searchsorted(table["first_half"], keys[:, 0])
        at[at == len(table["first_half"])] = 0
        is_there = (table["first_half"][at] == keys[:, 0]) & (table["second_half"][at] == keys[:, 1])
        places[is_there] = table["place"][at[is_there]]
        return places


@lru_cache(maxsize=4)
def _opened(folder: Path) -> dict[str, NDArray[Any]]:
    files = {name: folder / f"{name}.bin" for name in _KINDS}
    return {
        name: np.memmap(file, _KINDS[name], "r") if file.stat().st_size else np.zeros(0, _KINDS[name])
        for name, file in files.items()
    }


def find_repeats(
    pieces: Sequence[tuple[Part, ...]], keys_of: KeysOf, most: int, folder: Path, engine: Engine, progress: Progress,
    name: str,
) -> Repeats:  # fmt: skip
    """The keys that more than `most` places of the chosen documents have; `folder` is not there yet."""
    keys = folder / "keys"
    keys.mkdir(parents=True)
    files = [keys / f"{number:05d}.parquet" for number in range(len(pieces))]
    work = [(keys_of, parts, file) for parts, file in zip(pieces, files, strict=True)]
    ordered_results(engine, _write_keys, work, progress, name)
    with DaftProcess(engine.address) as daft:
        daft.write_limits(keys, most, folder, 1 << PART_BITS)
    for file in files:
        file.unlink()
    return Repeats(folder)


def _write_keys(item: tuple[KeysOf, tuple[Part, ...], Path]) -> None:
    """Writes the keys of the chosen documents of some stretches; in worker processes."""
    keys_of, parts, path = item
    with pq.ParquetWriter(path, _KEYS, compression="lz4", use_dictionary=False) as writer:
        for texts in read_texts(parts):
            found = [keys_of(text) for text in texts]
            keys = np.concatenate([np.zeros((0, 2), np.uint64), *(own for own, _ in found)])
            places = np.concatenate([np.zeros(0, np.int64), *(own for _, own in found)])
            part = (keys[:, 0] >> np.uint64(64 - PART_BITS)).astype(np.int32)
            writer.write_table(pa.table([part, keys[:, 0], keys[:, 1], places], schema=_KEYS))
