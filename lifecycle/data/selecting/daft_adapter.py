"""Grouping by Daft: which documents have a key in common. The same code runs on Ray.

The only file that imports Daft, itself imported only in a separate process (`workers.call_alone`): in a process that
also has JAX, the interpreter has crashed at exit (3 of 100 runs).
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

# Daft reads these when it is imported: no telemetry, and no output on the terminal, which shows the stage's progress.
os.environ.update(dict.fromkeys(("DAFT_ANALYTICS_ENABLED", "DAFT_PROGRESS_BAR", "DAFT_SHOW_QUERY_ID"), "0"))

import daft
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from daft import col, lit

BATCH_ROWS = 1 << 20  # that are distributed to blocks at a time
LINKS = pa.schema([("first", pa.int64()), ("ordinal", pa.int64())])


def use_engine(address: str | None) -> None:
    """Runs what follows on the Ray cluster at this address; None: in this process."""
    if address is None:
        daft.set_runner_native()
    else:
        daft.set_runner_ray(address)


def write_links(keys: Path, columns: Mapping[str, Sequence[str]], out: Path, block_rows: int, open_blocks: int) -> None:
    """Writes `<name>.parquet` for each key, one or several columns of integers in the Parquet file `keys`, which also
    has `ordinal`.

    A row (`first`, `ordinal`) for every document that has its key from `first`, the lowest that has it; sorted. A key
    that is null links nothing. About `block_rows` documents are grouped at a time, and files
    of `open_blocks` such blocks are open at once.
    """
    blocks = -(-pq.read_metadata(keys).num_rows // block_rows)
    for name, parts in columns.items():
        if blocks > 1:
            found = [_links(daft.from_arrow(block), parts) for block in _blocks(keys, parts, blocks, open_blocks, out)]
        else:
            found = [_links(daft.read_parquet(str(keys)), parts)]
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
        source = stack.enter_context(pq.ParquetFile(keys))
        for batch in source.iter_batches(BATCH_ROWS, columns=["ordinal", *columns]):
            present = batch.filter(batch[columns[0]].is_valid())
            rows = np.stack([column.to_numpy().astype(np.uint64) for column in present.columns], axis=1)
            block_of = (rows[:, 1] % np.uint64(blocks)).astype(np.int64)
            rows = rows[np.argsort(block_of, kind="stable")]
            ends = np.cumsum(np.bincount(block_of, minlength=blocks))
            for block, file in zip(own, opened, strict=True):
                rows[ends[block - 1] if block else 0 : ends[block]].tofile(file)


def _links(rows: daft.DataFrame, columns: Sequence[str]) -> pa.Table:
    """The links of some rows."""
    rows = rows.select("ordinal", *columns).where(col(columns[0]).not_null())
    firsts = rows.groupby(*columns).agg(col("ordinal").min().alias("first"), col("ordinal").count().alias("size"))
    shared = firsts.where(col("size") > lit(1)).select("first", *columns)
    joined = rows.join(shared, on=list(columns)).where(col("ordinal") != col("first"))
    return joined.select("first", "ordinal").to_arrow().cast(LINKS)
