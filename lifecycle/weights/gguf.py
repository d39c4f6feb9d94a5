"""GGUF files, the format of llama.cpp: typed metadata and quantised tensors.

Source: ggml's `docs/gguf.md`, versions 2 and 3 (little-endian). Tensors are read as float32, row by row. What must
hold: a truncated file, or one with an unsupported encoding, is rejected with the tensors' names. (The `gguf` package's
reader maps the file and trusts its lengths.)
"""

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lifecycle.weights.families.layout import Index, Shape
from lifecycle.weights.families.settings import WeightsError
from lifecycle.weights.gguf_encodings import ENCODINGS, Encoding, dequantise
from lifecycle.weights.tensor_parts import read_bytes, read_part

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32
LONGEST_VALUE = 1 << 26  # bytes of a string or an array of numbers; a larger length means damage


@dataclass(frozen=True)
class Stored:
    """A tensor's offset, shape and encoding in the file."""

    shape: Shape  # row-major: the file lists the fastest dimension first
    encoding: Encoding
    offset: int

    @property
    def num_bytes(self) -> int:
        """The tensor's size in the file."""
        return math.prod(self.shape) // self.encoding.values * self.encoding.num_bytes


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class GgufFile:
    """One file; a `TensorSource`. Raises `WeightsError` for a truncated or unsupported file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise WeightsError(f"{path}: no such file")
        try:
            with open(path, "rb") as file:
                self.metadata, self._tensors = _read_head(file)
        except (struct.error, UnicodeDecodeError, OverflowError, _Damaged) as error:
            raise WeightsError(f"{path}: not a complete GGUF file ({error}); download or copy it again") from None
        size = path.stat().st_size
        cut = [name for name, tensor in self._tensors.items() if tensor.offset + tensor.num_bytes > size]
        if cut:
            raise WeightsError(
                f"{path}: {size} bytes, too few for {len(cut)} of its tensors, {cut[0]} first; copy it again"
            )

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape by name."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype:
        """float32, which represents quantised values exactly."""
        return np.dtype(np.float32)

    @property
    def encodings(self) -> dict[str, int]:
        """The number of tensors of each encoding."""
        names = [tensor.encoding.name for tensor in self._tensors.values()]
        return {name: names.count(name) for name in sorted(set(names))}

    def read(self, name: str, index: Index) -> np.ndarray:
        """A part of a tensor, in float32."""
        tensor = self._tensors[name]
        return read_part(tensor.shape, np.dtype(np.float32), index, partial(self._read_rows, tensor))

    def _read_rows(self, tensor: Stored, start: int, stop: int) -> np.ndarray:
        shape = (stop - start, *tensor.shape[1:])
        per_row = math.prod(tensor.shape[1:])
        if per_row % tensor.encoding.values:  # a vector's blocks span several of its "rows"
            everything = dequantise(read_bytes(self.path, tensor.offset, tensor.num_bytes), tensor.encoding)
            return everything.reshape(tensor.shape)[start:stop]
        row = per_row // tensor.encoding.values * tensor.encoding.num_bytes
        data = read_bytes(self.path, tensor.offset + start * row, (stop - start) * row)
        return dequantise(data, tensor.encoding).reshape(shape)


class _Damaged(Exception):
    """Bytes that are not a GGUF file."""


def _read_head(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Stored]]:
    if file.read(4) != MAGIC:
        raise _Damaged(f"it does not begin with {MAGIC.decode()}")
    version, num_tensors, num_keys = _unpack(file, "<IQQ")
    if version not in VERSIONS:
        raise _Damaged(f"version {version}; supported: {VERSIONS}")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = _string(file)
        metadata[key] = _value(file, *_unpack(file, "<I"))
    listed = [_tensor_info(file) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise _Damaged(f"general.alignment is {alignment!r}")
    start = -(-file.tell() // alignment) * alignment
    return metadata, _tensors(listed, start)


def _tensors(listed: list[tuple[str, Shape, int, int]], start: int) -> dict[str, Stored]:
    unknown = [f"{name} (type {kind})" for name, _, kind, _ in listed if kind not in ENCODINGS]
    if unknown:
        known = ", ".join(encoding.name for encoding in ENCODINGS.values())
        raise WeightsError(
            f"{len(unknown)} tensors have an unsupported encoding, first {unknown[0]}; supported: {known}: use a file "
            "in one of these"
        )
    names = [name for name, *_ in listed]
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise _Damaged(f"tensor {doubled[0]} is listed twice")
    tensors = {name: Stored(shape, ENCODINGS[kind], start + offset) for name, shape, kind, offset in listed}
    ragged = [name for name, tensor in tensors.items() if tensor.shape[-1] % tensor.encoding.values]
    if ragged:
        raise _Damaged(f"a row of {ragged[0]} is not a whole number of blocks")
    return tensors


def _tensor_info(file: BinaryIO) -> tuple[str, Shape, int, int]:
    """(name, shape, type, offset) of a tensor."""
    name = _string(file)
    (num_dims,) = _unpack(file, "<I")
    if not 1 <= num_dims <= 4:
        raise _Damaged(f"tensor {name} has {num_dims} dimensions")
    dims = _unpack(file, f"<{num_dims}Q")
    kind, offset = _unpack(file, "<IQ")
    return name, dims[::-1], kind, offset


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind == ARRAY:
        item, count = _unpack(file, "<IQ")
        if item in SCALARS:
            code = SCALARS[item][1]
            return list(_unpack(file, f"<{count}{code}"))
        if item != STRING:
            raise _Damaged(f"an array of value type {item}")
        return [_string(file) for _ in range(count)]
    if kind not in SCALARS:
        raise _Damaged(f"value type {kind}")
    return _unpack(file, SCALARS[kind])[0]


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<Q")
    return _exactly(file, length).decode("utf-8")


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))


def _exactly(file: BinaryIO, count: int) -> bytes:
    if count > LONGEST_VALUE:  # before that much memory is allocated
        raise _Damaged(f"a value of {count} bytes")
    data = file.read(count)
    if len(data) != count:
        raise _Damaged("its header is truncated")
    return data
