"""Deduplication: documents of one address, exact copies, then near-duplicates by MinHash, verified, grouped and reduced
to the preferred member.

Documents that have a key in common are candidates (`minhash.py`); a pair counts only if the true Jaccard similarity of
its word 5-grams reaches the threshold, so a chance match of signatures removes nothing. Connected documents form a
group, of which the one with the lowest rank stays (`preference.py`): the choice depends neither on partitions nor on
the number of workers. Keys, links and shingles are on disk, and bands are grouped one at a time; a document takes some
30 bytes of memory, a removed one its reason besides.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.progress import Progress
from lifecycle.core.step_costs import spending
from lifecycle.data.config import DedupConfig
from lifecycle.data.documents import Flags, Stretch, pieces_of
from lifecycle.data.measures.steps import Failure
from lifecycle.data.selecting.daft_process import DaftProcess, Ordinals, read_links
from lifecycle.data.selecting.earlier import Pool
from lifecycle.data.selecting.near_duplicates import near_duplicates
from lifecycle.data.selecting.selection import removals
from lifecycle.data.selecting.similarity import NearDuplicate, preferred
from lifecycle.data.tagging.engine import Engine, ordered_results

ADDRESS, EXACT, NEAR = "address_duplicates", "exact_duplicates", "near_duplicates"  # the names of the steps
_OF = {ADDRESS: "address", EXACT: "content"}  # step -> the column of hashes that it compares
_SAME = {ADDRESS: "same address as", EXACT: "same text as"}
_HALVES = ("first_half", "second_half")  # of a hash

type KeysOf = Callable[[pa.Table], Sequence[pa.Array]]


def deduplicate(
    pool: Pool, chosen: Flags, config: DedupConfig, engine: Engine, daft: DaftProcess, scratch: Path, progress: Progress
) -> pa.Table:
    """The removals of duplicates among the chosen documents and earlier ones; `chosen` has an entry for each document
    of the run. The process `daft` is ended before pairs are compared: they may have its memory."""
    left, removed = pool.with_earlier(chosen), []
    with tempfile.TemporaryDirectory(prefix="dedup-", dir=scratch) as name:
        folder = Path(name)
        for step in (ADDRESS, EXACT) if config.addresses else (EXACT,):
            with spending(step, cpu_seconds):
                kept, copies = _copies(pool, left, step, folder, engine, daft, progress)
                removed.append(removals(step, _copy_failures(step, kept, copies, pool)))
                left[copies] = False
        with spending(NEAR, cpu_seconds):
            bands = _link_bands(pool, left, config, folder, engine, daft, progress)
            daft.end()
            near = near_duplicates(pool, bands, config, folder, engine, progress)
            removed.append(removals(NEAR, _near_failures(near, pool)))
    return pa.concat_tables(removed)


def _copies(
    pool: Pool, chosen: Flags, step: str, folder: Path, engine: Engine, daft: DaftProcess, progress: Progress
) -> tuple[Ordinals, Ordinals]:
    """The run's documents that have the hash of another one with a lower rank: the one with the lowest, and each of
    them."""
    keys = partial(_halves_of, _OF[step])
    _write_keys(pool, chosen, [_OF[step]], _HALVES, keys, folder / f"keys-{step}", engine, progress, step)
    daft.write_links(folder / f"keys-{step}", {step: _HALVES}, folder)
    firsts, others = read_links(folder, step, pool.num_own)
    heads = np.unique(firsts)
    members = np.concatenate([heads, others])
    kept = members[preferred(np.concatenate([heads, firsts]), pool.ranks[members])]
    copies = np.flatnonzero((kept != members) & (members < pool.num_own))
    return kept[copies], members[copies]


def _halves_of(column: str, documents: pa.Table) -> list[pa.Array]:
    """A column of hashes of 128 bits as two of 64."""
    hashes = documents[column].combine_chunks()
    joined = b"".join(hashes.drop_null().to_pylist())
    return [_placed(half, hashes.is_valid()) for half in np.frombuffer(joined, np.uint64).reshape(-1, 2).T]


def _placed(values: NDArray[np.uint64], present: pa.Array) -> pa.Array:
    """The values where something is present, null elsewhere."""
    flags = present.to_numpy(zero_copy_only=False)
    every = np.zeros(len(flags), np.uint64)
    every[flags] = values
    return pa.array(every, mask=~flags)


def _bands_of(count: int, documents: pa.Table) -> list[pa.Array]:
    """The key of each band."""
    lists = documents["bands"].combine_chunks()
    return [pc.call_function("list_element", [lists, number]) for number in range(count)]


def _write_keys(
    pool: Pool, chosen: Flags, columns: Sequence[str], names: Sequence[str], keys_of: KeysOf, folder: Path,
    engine: Engine, progress: Progress, step: str,
) -> None:  # fmt: skip
    """Writes Parquet files with a row for each chosen document: its `ordinal`, and the keys with these names that
    `keys_of` makes of its columns."""
    folder.mkdir()
    pieces = pieces_of(pool.stretches, chosen)
    files = [folder / f"{number:05d}.parquet" for number in range(len(pieces))]
    work = [(parts, columns, names, keys_of, file) for parts, file in zip(pieces, files, strict=True)]
    ordered_results(engine, _write_piece, work, progress, step.replace("_", " "))


def _write_piece(work: tuple[Sequence[tuple[Stretch, Flags]], Sequence[str], Sequence[str], KeysOf, Path]) -> None:
    """Writes the keys of some stretches; in worker processes."""
    parts, columns, names, keys_of, file = work
    schema = pa.schema([("ordinal", pa.int64()), *((name, pa.uint64()) for name in names)])
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for stretch, flags in parts:
            documents = stretch.read(columns).filter(pa.array(flags))
            writer.write_table(pa.table([documents["ordinal"], *keys_of(documents)], schema=schema))


def _link_bands(
    pool: Pool, chosen: Flags, config: DedupConfig, folder: Path, engine: Engine, daft: DaftProcess, progress: Progress
) -> list[str]:
    """Writes the links of each band among the chosen documents; returns the bands' names."""
    bands = [f"band_{number:03d}" for number in range(config.bands)]
    keys = partial(_bands_of, len(bands))
    _write_keys(pool, chosen, ["bands"], bands, keys, folder / "keys", engine, progress, NEAR)
    daft.write_links(folder / "keys", {band: (band,) for band in bands}, folder)
    return bands


def _copy_failures(step: str, kept: Ordinals, copies: Ordinals, pool: Pool) -> Iterator[Failure]:
    names = pool.names(np.unique(kept))
    for stays, copy in zip(kept.tolist(), copies.tolist(), strict=True):
        yield Failure(copy, _reason(step, stays, pool), f"{_SAME[step]} {names[stays]}")


def _near_failures(near: Sequence[NearDuplicate], pool: Pool) -> Iterator[Failure]:
    names = pool.names(np.unique([[found.like, found.kept] for found in near]).astype(np.int64))
    for duplicate in near:
        kept = "" if duplicate.like == duplicate.kept else f"; kept of its group: {names[duplicate.kept]}"
        detail = f"Jaccard {duplicate.jaccard:.3f} with {names[duplicate.like]}{kept}"
        yield Failure(duplicate.number, _reason(NEAR, duplicate.kept, pool), detail)


def _reason(step: str, kept: int, pool: Pool) -> str:
    reason = step.removesuffix("s")
    return f"earlier_{reason}" if kept >= pool.num_own else reason
