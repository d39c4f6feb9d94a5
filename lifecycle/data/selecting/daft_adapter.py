"""Grouping by Daft: which documents, or passages of them, have a key in common. The same code runs on Ray.

The only file that imports Daft, itself imported only in a separate process (`workers.Alone`): in a process that
also has JAX, the interpreter has crashed at exit (3 of 100 runs).
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

# Daft reads these when it is imported: no telemetry, and no output on the terminal, which shows the stage's progress.
os.environ.update(dict.fromkeys(("DAFT_ANALYTICS_ENABLED", "DAFT_PROGRESS_BAR", "DAFT_SHOW_QUERY_ID"), "0"))

import daft
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from daft import col, lit
from numpy.typing import NDArray

BATCH_ROWS = 1 << 20  # that are distributed to blocks at a time
LIMITS = ("first_half", "second_half", "place")  # uint64, uint64, int64
LINKS = pa.schema([("first", pa.int64()), ("ordinal", pa.int64())])


@cache
def use_engine(address: str | None) -> None:
    """Runs what follows on the Ray cluster at this address; None: in this process. Daft takes one engine a process."""
    if address is None:
        daft.set_runner_native()
    else:
        daft.set_runner_ray(address)


def write_links(keys: Path, columns: Mapping[str, Sequence[str]], out: Path, block_rows: int, open_blocks: int) -> None:
    """Writes `<name>.parquet` for each key, one or several columns of integers in the Parquet files of a folder, which
    also have `ordinal`.

    A row (`first`, `ordinal`) for every document that has its key from `first`, the lowest that has it; sorted. A key
    that is null links nothing. About `block_rows` documents are grouped at a time, and files
    of `open_blocks` such blocks are open at once.
    """
    blocks = -(-_num_rows(keys) // block_rows)
    for name, parts in columns.items():
        if blocks > 1:
            found = [_links(daft.from_arrow(block), parts) for block in _blocks(keys, parts, blocks, open_blocks, out)]
        else:
            found = [_links(daft.read_parquet(f"{keys}/*.parquet"), parts)]
        links = pa.concat_tables([LINKS.empty_table(), *found]).sort_by([(at, "ascending") for at in LINKS.names])
        pq.write_table(links, out / f"{name}.parquet", compression="lz4")


def _blocks(keys: Path, columns: Sequence[str], blocks: int, open_blocks: int, scratch: Path) -> Iterator[pa.Table]:
    """The rows in as many tables, by what their keys leave when the first column is divided: rows with the same key are
    in the same. They are distributed to files, so that many blocks do not read all rows as often."""
    for start in range(0, blocks, open_blocks):
        own = range(start, min(start + open_blocks, blocks))
        with tempfile.TemporaryDirectory(prefix="blocks-", dir=scratch) as name:
            files = [Path(name, str(block)) for block in own]
            _distribute(keys, columns, blocks, own, files)
            for file in files:
                ordinals, *parts = np.fromfile(file, np.uint64).reshape(-1, 1 + len(columns)).T
                yield pa.table([ordinals.astype(np.int64), *parts], names=["ordinal", *columns])


def _distribute(keys: Path, columns: Sequence[str], blocks: int, own: range, files: Sequence[Path]) -> None:
    """Writes the rows of some blocks, a file each: the ordinal and the columns as integers of 64 bits."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open(file, "wb")) for file in files]
        for batch in _batches(keys, ["ordinal", *columns]):
            present = batch.filter(batch[columns[0]].is_valid())
            rows = np.stack([column.to_numpy().astype(np.uint64) for column in present.columns], axis=1)
            block_of = (rows[:, 1] % np.uint64(blocks)).astype(np.int64)
            rows = rows[np.argsort(block_of, kind="stable")]
            ends = np.cumsum(np.bincount(block_of, minlength=blocks))
            for block, file in zip(own, opened, strict=True):
                rows[ends[block - 1] if block else 0 : ends[block]].tofile(file)


def _batches(keys: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of all files of a folder."""
    for path in sorted(keys.iterdir()):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=columns)


def _num_rows(keys: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in keys.iterdir())


def write_limits(keys: Path, most: int, out: Path, num_parts: int, block_rows: int) -> None:
    """Writes the keys of 128 bits, columns `first_half` and `second_half` of the Parquet files in the folder `keys`,
    that more than `most` rows have, in ascending order, and with each the `most`-th least of these rows' `place`.

    Column `part`, a number below `num_parts` that ascends with the keys, says which are grouped together; about
    `block_rows` are at a time. The result is raw numbers, a file for each column.
    """
    blocks = -(-_num_rows(keys) // block_rows)
    edges = [block * num_parts // max(1, blocks) for block in range(blocks + 1)]
    with ExitStack() as stack:
        files = {name: stack.enter_context((out / f"{name}.bin").open("wb")) for name in LIMITS}
        for low, high in pairwise(edges):
            rows = _shared(keys, low, high, most)
            starts = np.flatnonzero(_differs(rows["first_half"]) | _differs(rows["second_half"]))
            for name, file in files.items():
                rows[name][starts + (most - 1 if name == "place" else 0)].tofile(file)


def _shared(keys: Path, low: int, high: int, most: int) -> dict[str, NDArray[Any]]:
    """The rows of the keys in these parts that more than `most` rows have, sorted."""
    part, columns = col("part"), ("first_half", "second_half")
    rows = daft.read_parquet(f"{keys}/*.parquet").where((part >= lit(low)) & (part < lit(high))).exclude("part")
    sizes = rows.groupby(*columns).agg(col("place").count().alias("size"))
    shared = sizes.where(col("size") > lit(most)).select(*columns)
    found = rows.join(shared, on=list(columns)).select(*LIMITS).to_arrow()
    found = found.sort_by([(name, "ascending") for name in LIMITS])
    return {name: found[name].to_numpy() for name in LIMITS}


def _differs(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each value is another one than that before it."""
    return np.append(np.ones(min(1, len(values)), bool), values[1:] != values[:-1])


def _links(rows: daft.DataFrame, columns: Sequence[str]) -> pa.Table:
    """The links of some rows."""
    rows = rows.select("ordinal", *columns).where(col(columns[0]).not_null())
    firsts = rows.groupby(*columns).agg(col("ordinal").min().alias("first"), col("ordinal").count().alias("size"))
    shared = firsts.where(col("size") > lit(1)).select("first", *columns)
    joined = rows.join(shared, on=list(columns)).where(col("ordinal") != col("first"))
    return joined.select("first", "ordinal").to_arrow().cast(LINKS)
