"""Reads a checkpoint's arrays one at a time into host memory, without a device.

Orbax restores trees; an export needs one array after the other, and a layer's experts one by one. This reads what Orbax
wrote, a Zarr array per name in an OCDBT store, by TensorStore, as Orbax does. What must hold: memory holds the
requested part and at most one chunk more.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorstore as ts


class ArrayReader:
    """Arrays by canonical name, each in the item of a checkpoint that `items` names: `reader(name, None)` returns a
    full array, `reader(name, expert)` one index of its first dimension.

    While an array is read, memory holds its compressed chunks too. For reads by expert, the last decoded chunk is kept:
    chunks are the shards that devices held, so a layer's experts may be one chunk, which would otherwise be decoded
    once per expert.
    """

    def __init__(self, items: Mapping[str, Path]) -> None:
        self._items = items
        self._held: tuple[str, int] | None = None  # the name and the first expert of `_part`
        self._part: np.ndarray | None = None

    def __call__(self, name: str, expert: int | None) -> np.ndarray:
        """An array by canonical name, or one expert's part of it."""
        base = {"driver": "file", "path": f"{self._items[name].absolute()}/"}
        store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        array = ts.open({"driver": "zarr", "kvstore": store}, open=True).result()
        if expert is None:
            self._held = self._part = None
            return array.read().result()
        length: int = array.spec().to_json()["metadata"]["chunks"][0]
        first = expert // length * length
        if self._part is None or self._held != (name, first):
            self._part = None  # freed before the next is read
            self._part = array[first : min(first + length, array.shape[0])].read().result()
            self._held = name, first
        return self._part[expert - first]
