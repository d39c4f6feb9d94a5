"""Which mesh axes a collective runs over, from the device numbers in its text."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lifecycle.planning.compiled.hlo import Instruction

_MESH = re.compile(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclass(frozen=True)
class MeshShape:
    """Axis names and sizes.

    A program numbers the mesh's devices in order, the last axis fastest; with several slices, it numbers those of one
    slice, and the first axis crosses slices.
    """

    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    num_slices: int = 1

    def group_size(self, axes: Sequence[str]) -> int:
        """How many devices take part in a collective over these axes."""
        return math.prod(size for axis, size in zip(self.axes, self.sizes, strict=True) if axis in axes)


def axes_of(instruction: Instruction, mesh: MeshShape) -> tuple[tuple[str, ...], int]:
    """The mesh axes that a collective runs over, and how many devices take part in each group."""
    pairs = instruction.attribute("source_target_pairs")
    if pairs is not None:
        members = np.array([[int(n) for n in re.findall(r"\d+", pair)] for pair in pairs.split("},{")])
        return _varying(members, mesh), 2
    text = re.search(
        r"replica_groups=(mesh\[.*?\][^{]*\{[^}]*\}|\{\{.*?\}\}|\[[^ ]*?(?=, |$)|\{\})", instruction.attributes
    )
    assert text is not None, f"{instruction.name} names no devices: {instruction.attributes[:200]}"
    named = _MESH.match(text[1])
    if named and "device_ids" not in text[1]:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        axes = [axis for axis in re.findall(r"'([^']+)'", named[2]) if sizes.get(axis, 1) > 1]
        if set(axes) <= set(mesh.axes) and ":" not in named[2]:
            return tuple(axes), math.prod(sizes[axis] for axis in axes)
    groups = _listed(text[1], math.prod(mesh.sizes))
    return _varying(groups, mesh), groups.shape[1]


def _listed(text: str, num_devices: int) -> np.ndarray:
    """Device numbers, one row per group, from `{{0,1},{2,3}}` or `[2,2]<=[2,2]T(1,0)`; empty means all."""
    iota = _IOTA.match(text)
    if iota:
        shape, order, swapped = ([int(n) for n in (part or "").split(",") if n] for part in iota.groups())
        numbers = np.arange(math.prod(order)).reshape(order)
        return (numbers.transpose(swapped) if swapped else numbers).reshape(shape)
    rows = [[int(n) for n in re.findall(r"\d+", group)] for group in re.findall(r"\{([\d,]+)\}", text)]
    return np.array(rows) if rows else np.arange(num_devices).reshape(1, -1)


def _varying(groups: np.ndarray, mesh: MeshShape) -> tuple[str, ...]:
    """Axes along which the members of any group differ."""
    indices = np.array(np.unravel_index(groups, mesh.sizes))  # [axes, groups, members]
    differ = (indices != indices[:, :, :1]).any(axis=(1, 2))
    return tuple(axis for axis, moves in zip(mesh.axes, differ, strict=True) if moves)
