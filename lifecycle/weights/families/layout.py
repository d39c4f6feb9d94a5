"""Where a family's published tensors hold our arrays: a table of names, and three ways in which they may lie there.

A product is stored `[in, out]` here and mostly `[out, in]` there; the experts of a layer are one array here and often a
tensor each there; and the columns (the last dimension) may have another order or share a tensor with another array's.
What must hold: reading undoes writing bit by bit, and a part of an array is read without the rest.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lifecycle.model.config import ModelConfig

type Shape = tuple[int, ...]
type Index = tuple[slice, ...]  # one slice a dimension, start and stop given, step 1
type Columns = Callable[[ModelConfig], np.ndarray]

LAYER, EXPERT = "{layer}", "{expert}"


class TensorSource(Protocol):
    """Tensors by published name, read part by part (a folder of safetensors, a GGUF file)."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def dtype(self, name: str) -> np.dtype: ...

    def read(self, name: str, index: Index) -> np.ndarray: ...


@dataclass(frozen=True)
class Place:
    """Where one array lies. A name with `{expert}` stands for a tensor for each index of the array's first dimension.

    `columns` gives, for each index of our last dimension, its index in the published tensor's dimension of outputs.
    """

    name: str
    transposed: bool = False
    columns: Columns | None = None

    @property
    def is_per_expert(self) -> bool:
        return EXPERT in self.name


@dataclass(frozen=True)
class Part:
    """A share of a published tensor: an array of ours (one expert of it), and how it lies there."""

    array: str  # canonical name
    expert: int | None
    place: Place


@dataclass(frozen=True)
class Published:
    """A published tensor: its shape, and the arrays that fill it."""

    shape: Shape
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Layout:
    """A family's table: places by canonical name, those of a layer without `blocks.N.` and with `{layer}` inside."""

    trunk: Mapping[str, Place]
    layer: Mapping[str, Place]

    def place(self, array: str) -> Place | None:
        """The place of the array with this canonical name; None where the family has no such array."""
        if not array.startswith("blocks."):
            return self.trunk.get(array)
        _, number, rest = array.split(".", 2)
        found = self.layer.get(rest)
        return found and Place(found.name.replace(LAYER, number), found.transposed, found.columns)

    def is_place(self, name: str, array: str) -> bool:
        """Whether `name` is where the trunk's `array` lies."""
        return array in self.trunk and self.trunk[array].name == name


def published_tensors(config: ModelConfig, layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, Published]:
    """The tensors that a model with these arrays (canonical name to shape) has in a layout, in order of the arrays."""
    parts: dict[str, list[tuple[Part, Shape]]] = {}
    for array, shape in shapes.items():
        place = layout.place(array)
        assert place is not None, f"the layout has no place for {array}"
        if not place.is_per_expert:
            parts.setdefault(place.name, []).append((Part(array, None, place), shape))
            continue
        for expert in range(shape[0]):
            name = place.name.replace(EXPERT, str(expert))
            parts.setdefault(name, []).append((Part(array, expert, place), shape[1:]))
    return {name: Published(_shape(found), tuple(part for part, _ in found)) for name, found in parts.items()}


def _shape(parts: list[tuple[Part, Shape]]) -> Shape:
    """The shape of a tensor in which these arrays lie side by side."""
    part, shape = parts[0]
    wide = (*shape[:-1], sum(own[-1] for _, own in parts))
    return (*wide[:-2], wide[-1], wide[-2]) if part.place.transposed else wide


def read_array(
    config: ModelConfig, layout: Layout, source: TensorSource, array: str, index: Index, out: np.ndarray
) -> None:
    """Fills `out` with the part of an array that `index` says, converted to `out`'s dtype."""
    place = layout.place(array)
    assert place is not None, f"the layout has no place for {array}"
    if not place.is_per_expert:
        _read_tensor(config, source, place, place.name, index, out)
        return
    for position, expert in enumerate(range(index[0].start, index[0].stop)):
        name = place.name.replace(EXPERT, str(expert))
        _read_tensor(config, source, place, name, index[1:], out[position])


def _read_tensor(
    config: ModelConfig, source: TensorSource, place: Place, name: str, index: Index, out: np.ndarray
) -> None:
    columns: np.ndarray | None = None
    if place.columns is not None:  # read the span that holds them, then pick
        columns = place.columns(config)[index[-1]]
        first = int(columns.min())
        index = (*index[:-1], slice(first, int(columns.max()) + 1))
        columns = columns - first
    if place.transposed:
        index = (*index[:-2], index[-1], index[-2])
    tensor = source.read(name, index)
    if place.transposed:
        tensor = tensor.swapaxes(-1, -2)
    out[...] = tensor if columns is None else tensor[..., columns]


def write_tensor(
    config: ModelConfig, published: Published, read: Callable[[str, int | None], np.ndarray], dtype: np.dtype
) -> np.ndarray:
    """A published tensor from our arrays; `read(array, expert)` gives one of them, or one expert's part of it."""
    tensor = np.empty(published.shape, dtype)
    for part in published.parts:
        target = tensor.swapaxes(-1, -2) if part.place.transposed else tensor
        columns = slice(None) if part.place.columns is None else part.place.columns(config)
        array = read(part.array, part.expert)
        assert array.shape == target[..., columns].shape, f"{part.array}: {array.shape} in {published.shape}"
        target[..., columns] = array
    return tensor


def de_interleaved(heads: int, head_dim: int, first: int, rope_dim: int) -> np.ndarray:
    """Columns of heads whose dimensions `first .. first + rope_dim` are rotated as neighbouring pairs there, and as
    halves here: our (half a, pair i) is their dimension `2 i + a`."""
    order = np.arange(head_dim)
    order[first : first + rope_dim] = first + np.arange(rope_dim).reshape(-1, 2).T.reshape(-1)
    return (np.arange(heads)[:, None] * head_dim + order).reshape(-1)


def every(step: int, first: int, count: Callable[[ModelConfig], int]) -> Columns:
    """Columns `first, first + step, ...`: arrays that share a tensor column by column."""
    return lambda config: first + step * np.arange(count(config))


def places(prefix: str, names: Mapping[str, str], transposed: bool) -> Iterator[tuple[str, Place]]:
    """(canonical name, place) pairs of a table, all lying one way below a prefix."""
    for array, name in names.items():
        yield array, Place(prefix + name, transposed)
