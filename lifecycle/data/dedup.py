"""Deduplication: exact copies, then near-duplicates by MinHash, verified, grouped and reduced to their first member.

Documents that have a key in common are candidates (`minhash.py`); a pair counts only if the true Jaccard similarity of
its word 5-grams reaches the threshold, so a chance match of signatures removes nothing. Connected documents form a
group, and the first one in the order of the sources stays: the choice depends neither on partitions nor on the number
of workers. Keys, links and shingles are on disk, and bands are grouped one at a time; a document takes some 20 bytes of
memory, a removed one its reason besides.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import batched
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.data.config import DedupConfig
from lifecycle.data.documents import PIECE, Stretch, names_of
from lifecycle.data.engine import Engine, ordered_results
from lifecycle.data.selection import removals
from lifecycle.data.shingle_store import ShingleStore, write_shingles
from lifecycle.data.similarity import NearDuplicate, SimilarGroups
from lifecycle.data.steps import Failure
from lifecycle.data.workers import call_alone

EXACT, NEAR = "exact_duplicates", "near_duplicates"  # the names of the steps
_CONTENT = ("content_0", "content_1")  # the halves of the content's hash

type Ordinals = NDArray[np.int64]


def deduplicate(
    stretches: Sequence[Stretch], chosen: NDArray[np.bool_], config: DedupConfig, engine: Engine, scratch: Path
) -> pa.Table:
    """The removals of duplicates among the chosen documents; `chosen` has an entry for each document."""
    with tempfile.TemporaryDirectory(prefix="dedup-", dir=scratch) as name:
        folder = Path(name)
        bands = [f"band_{number:03d}" for number in range(config.bands)]
        _write_keys(folder / "keys.parquet", stretches, chosen, bands)
        columns = {EXACT: _CONTENT} | {band: (band,) for band in bands}
        call_alone(_write_links, folder / "keys.parquet", columns, folder, engine.address)
        firsts, copies = _read_links(folder, EXACT)
        near = _near_duplicates(stretches, folder, bands, copies, config.jaccard, engine)
    named = {*firsts.tolist(), *(ordinal for duplicate in near for ordinal in (duplicate.like, duplicate.first))}
    names = names_of(stretches, np.array(sorted(named), np.int64))
    exact = zip(copies.tolist(), firsts.tolist(), strict=True)
    return pa.concat_tables([
        removals(EXACT, _exact_failures(exact, names)), removals(NEAR, _near_failures(near, names)),
    ])  # fmt: skip


def _write_keys(path: Path, stretches: Sequence[Stretch], chosen: NDArray[np.bool_], bands: Sequence[str]) -> None:
    """Writes a row for each chosen document: its `ordinal`, and a column for each key."""
    keys = pa.schema([("ordinal", pa.int64()), *((name, pa.uint64()) for name in (*_CONTENT, *bands))])
    with pq.ParquetWriter(path, keys, compression="none", use_dictionary=False) as writer:
        for stretch in stretches:
            own = pa.array(chosen[stretch.first : stretch.end])
            documents = stretch.read(["content", "bands"]).filter(own).combine_chunks()
            halves = np.frombuffer(b"".join(documents["content"].to_pylist()), np.uint64).reshape(-1, 2).T
            of_bands = documents["bands"].combine_chunks()
            columns = [pc.call_function("list_element", [of_bands, number]) for number in range(len(bands))]
            writer.write_table(pa.table([documents["ordinal"], *map(pa.array, halves), *columns], schema=keys))


def _write_links(keys: Path, columns: Mapping[str, Sequence[str]], out: Path, address: str | None) -> None:
    from lifecycle.data import daft_adapter

    daft_adapter.use_engine(address)
    daft_adapter.write_links(keys, columns, out)


def _read_links(folder: Path, name: str) -> tuple[Ordinals, Ordinals]:
    """The firsts, and the documents that each has a key in common with."""
    links = pq.read_table(folder / f"{name}.parquet")
    return links["first"].to_numpy(), links["ordinal"].to_numpy()


def _near_duplicates(
    stretches: Sequence[Stretch], folder: Path, bands: Sequence[str], copies: Ordinals, jaccard: float, engine: Engine
) -> list[NearDuplicate]:
    """The near-duplicates that the links of the bands lead to, by ordinal; exact copies are none."""
    linked = [np.unique(np.concatenate(_read_links(folder, band))) for band in bands]
    candidates = np.setdiff1d(np.unique(np.concatenate(linked)), copies)
    if not len(candidates):
        return []
    with _shingles(stretches, candidates, engine, folder) as store:
        groups = SimilarGroups(len(candidates), store.similarity, jaccard)
        for band in bands:
            firsts, others = _read_links(folder, band)
            is_meant = ~np.isin(others, copies)
            for bucket in _buckets(*(np.searchsorted(candidates, side[is_meant]) for side in (firsts, others))):
                groups.join(bucket)
    ordinals = candidates.tolist()
    return [
        NearDuplicate(ordinals[found.number], ordinals[found.first], ordinals[found.like], found.jaccard)
        for found in groups.duplicates()
    ]


def _shingles(stretches: Sequence[Stretch], candidates: Ordinals, engine: Engine, folder: Path) -> ShingleStore:
    """The shingles of the candidates, numbered as they are there."""
    cuts = [np.searchsorted(candidates, [stretch.first, stretch.end]) for stretch in stretches]
    parts = [(stretch, candidates[slice(*cut)]) for stretch, cut in zip(stretches, cuts, strict=True)]
    pieces = list(batched([part for part in parts if len(part[1])], PIECE))
    paths = [folder / f"shingles-{number:05d}.bin" for number in range(len(pieces))]
    sizes = ordered_results(engine, write_shingles, list(zip(pieces, paths, strict=True)))
    return ShingleStore(paths, sizes)


def _buckets(firsts: Ordinals, others: Ordinals) -> Iterator[list[int]]:
    """The documents of each bucket, ascending; the links are sorted."""
    starts = np.flatnonzero(np.diff(firsts, prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(firsts)], strict=False):
        yield [int(firsts[start]), *others[start:end].tolist()]


def _exact_failures(exact: Iterable[tuple[int, int]], names: Mapping[int, str]) -> Iterator[Failure]:
    for copy, first in exact:
        yield Failure(copy, "exact_duplicate", f"same text as {names[first]}")


def _near_failures(near: Sequence[NearDuplicate], names: Mapping[int, str]) -> Iterator[Failure]:
    for duplicate in near:
        kept = "" if duplicate.like == duplicate.first else f"; kept of its group: {names[duplicate.first]}"
        detail = f"Jaccard {duplicate.jaccard:.3f} with {names[duplicate.like]}{kept}"
        yield Failure(duplicate.number, "near_duplicate", detail)
