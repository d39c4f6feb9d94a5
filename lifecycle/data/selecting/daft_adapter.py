"""Grouping by Daft: which documents have a key in common. The same code runs on Ray.

The only file that imports Daft, itself imported only in a separate process (`workers.call_alone`): in a process that
also has JAX, the interpreter has crashed at exit (3 of 100 runs).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

# Daft reads these when it is imported: no telemetry, and no output on the terminal, which shows the stage's progress.
os.environ.update(dict.fromkeys(("DAFT_ANALYTICS_ENABLED", "DAFT_PROGRESS_BAR", "DAFT_SHOW_QUERY_ID"), "0"))

import daft
import pyarrow as pa
import pyarrow.parquet as pq
from daft import col, lit

LINKS = pa.schema([("first", pa.int64()), ("ordinal", pa.int64())])


def use_engine(address: str | None) -> None:
    """Runs what follows on the Ray cluster at this address; None: in this process."""
    if address is None:
        daft.set_runner_native()
    else:
        daft.set_runner_ray(address)


def write_links(keys: Path, columns: Mapping[str, Sequence[str]], out: Path, block_rows: int) -> None:
    """Writes `<name>.parquet` for each key, one or several columns of integers in the Parquet file `keys`, which also
    has `ordinal`.

    A row (`first`, `ordinal`) for every document that has its key from `first`, the lowest that has it; sorted. A key
    that is null links nothing. About `block_rows` documents are grouped at a time.
    """
    blocks = -(-pq.read_metadata(keys).num_rows // block_rows)
    for name, parts in columns.items():
        found = [_links(keys, parts, block, blocks) for block in range(blocks)]
        links = pa.concat_tables([LINKS.empty_table(), *found]).sort_by([(at, "ascending") for at in LINKS.names])
        pq.write_table(links, out / f"{name}.parquet", compression="lz4")


def _links(keys: Path, columns: Sequence[str], block: int, blocks: int) -> pa.Table:
    """The links of the keys that leave `block` when their first column is divided by `blocks`."""
    first_column = col(columns[0])
    rows = daft.read_parquet(str(keys)).select("ordinal", *columns).where(first_column.not_null())
    if blocks > 1:
        rows = rows.where((first_column % lit(blocks)) == lit(block))
    firsts = rows.groupby(*columns).agg(col("ordinal").min().alias("first"), col("ordinal").count().alias("size"))
    shared = firsts.where(col("size") > lit(1)).select("first", *columns)
    joined = rows.join(shared, on=list(columns)).where(col("ordinal") != col("first"))
    return joined.select("first", "ordinal").to_arrow().cast(LINKS)
