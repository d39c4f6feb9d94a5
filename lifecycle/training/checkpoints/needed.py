"""Which files of a checkpoint this process reads.

A checkpoint's trees say in which file the value of each chunk is. The processes of a job hold shards, so each needs few
of the large files, if it has the trees, the metadata and the small values, which are in other files (`parts.py`).
"""

import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import tensorstore as ts

from lifecycle.training.checkpoints.arrays import Shapes
from lifecycle.training.checkpoints.parts import values_in
from lifecycle.training.checkpoints.reading import read_here

TREE = "manifest.ocdbt"


def value_files(checkpoint: Path, wanted: Mapping[str, Shapes]) -> set[str]:
    """The files with values that this process reads of arrays by item, as names in the checkpoint's folder; the item
    "" is the folder itself. The trees and the metadata are there."""
    return {
        f"{item}/{file}".removeprefix("/")
        for item, arrays in wanted.items()
        if (checkpoint / item / TREE).is_file()  # otherwise reading it says what is wrong
        for file in _files(checkpoint / item, read_here(arrays))
    }


def _files(item: Path, arrays: Shapes) -> set[str]:
    base = {"driver": "file", "path": f"{item.absolute()}/"}
    tree = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    metadata = {name: tree.read(f"{name}/.zarray") for name in arrays}
    keys = {key for name, leaf in arrays.items() for key in _chunks(name, leaf, metadata[name].result().value)}
    return {value.file for value in values_in(item) if value.key in keys}


def _chunks(name: str, leaf: Any, metadata: bytes) -> Iterator[str]:
    """The keys of the chunks of a Zarr array that this process's shards overlap; none of an array that was not saved,
    or in another shape, which the reader refuses. https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html"""
    facts = json.loads(metadata or b"{}")
    if facts.get("shape") != list(leaf.shape):
        return
    for index in set(leaf.sharding.addressable_devices_indices_map(leaf.shape).values()):
        bounds = (part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
        per_dim = zip(bounds, facts["chunks"], strict=True)
        grid = (range(start // chunk, -(-stop // chunk)) for (start, stop), chunk in per_dim)
        yield from (f"{name}/{'.'.join(map(str, chunk)) or '0'}" for chunk in product(*grid))
