"""Which published tensor holds each of our arrays: a table of names, and the three ways in which layouts differ.

Our matrices are `[in, out]`, published ones mostly `[out, in]`. Our experts of a layer are one array, published ones
often one tensor each. Published columns (our last dimension) may be permuted or share a tensor with another array's.
What must hold: reading undoes writing bit for bit, and a part of an array is read without the rest.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from lifecycle.model.config import ModelConfig
from lifecycle.model.stacks import MODULES, SCORE

type Shape = tuple[int, ...]
type Index = tuple[slice, ...]  # one slice per dimension, with start, stop and step 1
type Columns = Callable[[ModelConfig], np.ndarray]

LAYER, EXPERT = "{layer}", "{expert}"
LAYERS, OF_MODULES = "blocks.", f"{MODULES}."  # how the canonical names of their arrays begin


class TensorSource(Protocol):
    """Tensors by published name, read part by part (a folder of safetensors, a GGUF file)."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape by its published name."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """The dtype that `read` returns for a tensor."""
        ...

    def read(self, name: str, index: Index) -> np.ndarray:
        """The part of a tensor that `index` selects."""
        ...


@dataclass(frozen=True)
class Location:
    """The published tensor of one array. A name with `{expert}` means one tensor per index of the first dimension.

    `columns` gives, for each index of our last dimension, its index in the published tensor's dimension of outputs.
    """

    name: str
    transposed: bool = False
    columns: Columns | None = None
    is_row: bool = False  # our vector is the only row of a matrix

    @property
    def is_per_expert(self) -> bool:
        """Whether each expert has a tensor of its own."""
        return EXPERT in self.name


# Of a model that scores texts, as transformers' `*ForSequenceClassification` with one label has it, in all families.
SCORE_LOCATION = Location("score.weight", is_row=True)


@dataclass(frozen=True)
class TensorPart:
    """One of our arrays (or one expert of it) as a part of a published tensor."""

    array: str  # canonical name
    expert: int | None
    location: Location


@dataclass(frozen=True)
class Published:
    """A published tensor: its shape, and the arrays that fill it."""

    shape: Shape
    parts: tuple[TensorPart, ...]


@dataclass(frozen=True)
class Layout:
    """A family's table: locations by canonical name. A layer's names omit `blocks.N.`, a prediction module's `mtp.N.`;
    the tensors' names contain `{layer}`, the modules being the layers after the last. `copies`: a module's tensors that
    repeat an array of the trunk."""

    trunk: Mapping[str, Location]
    layer: Mapping[str, Location]
    module: Mapping[str, Location] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)

    def location(self, config: ModelConfig, array: str) -> Location | None:
        """The location of the array with this canonical name; None if the family has no such array."""
        if array == SCORE:
            return SCORE_LOCATION
        if not array.startswith((LAYERS, OF_MODULES)):
            return self.trunk.get(array)
        kind, number, rest = array.split(".", 2)
        if kind == MODULES:
            location, layer = self.module.get(rest), config.num_layers + int(number)
        else:
            location, layer = self.layer.get(rest), int(number)
        return location and replace(location, name=location.name.replace(LAYER, str(layer)))

    def copied(self, config: ModelConfig) -> dict[str, str]:
        """The published names of the model's copies, and the array that each repeats."""
        layers = range(config.num_layers, config.num_layers + config.num_mtp_modules)
        of_head = "embed" if config.tie_embeddings else "head"
        return {
            name.replace(LAYER, str(layer)): of_head if array == "head" else array
            for layer in layers
            for name, array in self.copies.items()
        }

    def is_tensor_of(self, name: str, array: str) -> bool:
        """Whether the published tensor `name` holds the trunk's `array`."""
        return array in self.trunk and self.trunk[array].name == name


def published_tensors(config: ModelConfig, layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, Published]:
    """The tensors that a model with these arrays (canonical name to shape) has in a layout, in order of the arrays."""
    parts: dict[str, list[tuple[TensorPart, Shape]]] = {}
    for array, shape in shapes.items():
        location = layout.location(config, array)
        assert location is not None, f"the layout has no tensor for {array}"
        if not location.is_per_expert:
            parts.setdefault(location.name, []).append((TensorPart(array, None, location), shape))
            continue
        for expert in range(shape[0]):
            name = location.name.replace(EXPERT, str(expert))
            parts.setdefault(name, []).append((TensorPart(array, expert, location), shape[1:]))
    for name, array in layout.copied(config).items():
        parts[name] = [(TensorPart(array, None, layout.trunk[array]), shapes[array])]
    return {name: Published(_shape(held), tuple(part for part, _ in held)) for name, held in parts.items()}


def _shape(parts: list[tuple[TensorPart, Shape]]) -> Shape:
    """The shape of a tensor that concatenates these arrays."""
    part, shape = parts[0]
    if part.location.is_row:
        return (1, *shape)
    wide = (*shape[:-1], sum(own[-1] for _, own in parts))
    return (*wide[:-2], wide[-1], wide[-2]) if part.location.transposed else wide


def read_array(
    config: ModelConfig, layout: Layout, source: TensorSource, array: str, index: Index, out: np.ndarray
) -> None:
    """Fills `out` with the part of an array that `index` selects, converted to `out`'s dtype."""
    location = layout.location(config, array)
    assert location is not None, f"the layout has no tensor for {array}"
    if not location.is_per_expert:
        _read_tensor(config, source, location, location.name, index, out)
        return
    for position, expert in enumerate(range(index[0].start, index[0].stop)):
        name = location.name.replace(EXPERT, str(expert))
        _read_tensor(config, source, location, name, index[1:], out[position])


def _read_tensor(
    config: ModelConfig, source: TensorSource, location: Location, name: str, index: Index, out: np.ndarray
) -> None:
    columns: np.ndarray | None = None
    if location.columns is not None:  # read the span that holds them, then pick
        columns = location.columns(config)[index[-1]]
        first = int(columns.min())
        index = (*index[:-1], slice(first, int(columns.max()) + 1))
        columns = columns - first
    if location.transposed:
        index = (*index[:-2], index[-1], index[-2])
    if location.is_row:
        out[...] = source.read(name, (slice(0, 1), *index))[0]
        return
    tensor = source.read(name, index)
    if location.transposed:
        tensor = tensor.swapaxes(-1, -2)
    out[...] = tensor if columns is None else tensor[..., columns]


def write_tensor(
    config: ModelConfig, published: Published, read: Callable[[str, int | None], np.ndarray], dtype: np.dtype
) -> np.ndarray:
    """A published tensor from our arrays; `read(array, expert)` gives one of them, or one expert's part of it."""
    tensor = np.empty(published.shape, dtype)
    for part in published.parts:
        target = tensor.swapaxes(-1, -2) if part.location.transposed else tensor[0] if part.location.is_row else tensor
        columns = slice(None) if part.location.columns is None else part.location.columns(config)
        array = read(part.array, part.expert)
        assert array.shape == target[..., columns].shape, f"{part.array}: {array.shape} in {published.shape}"
        target[..., columns] = array
    return tensor


def de_interleaved(heads: int, head_dim: int, first: int, rope_dim: int) -> np.ndarray:
    """Columns of heads whose dimensions `first .. first + rope_dim` are rotated as neighbouring pairs in the file and
    as halves here: our (half a, pair i) is their dimension `2 i + a`."""
    order = np.arange(head_dim)
    order[first : first + rope_dim] = first + np.arange(rope_dim).reshape(-1, 2).T.reshape(-1)
    return (np.arange(heads)[:, None] * head_dim + order).reshape(-1)


def every(step: int, first: int, count: Callable[[ModelConfig], int]) -> Columns:
    """Columns `first, first + step, ...`: arrays that share a tensor column by column."""
    return lambda config: first + step * np.arange(count(config))


def locations(prefix: str, names: Mapping[str, str], transposed: bool) -> Iterator[tuple[str, Location]]:
    """(canonical name, location) pairs of tensors below a prefix, all transposed or none."""
    for array, name in names.items():
        yield array, Location(prefix + name, transposed)
