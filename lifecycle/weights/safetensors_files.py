"""Safetensors files, read and written in parts: memory holds only the requested part of a checkpoint.

The format (github.com/huggingface/safetensors, README "Format"): eight bytes of header length, little-endian; a JSON
header of dtype, shape and byte range for each tensor; the tensors, row-major, without holes. What must hold: a
truncated file, or one whose header contradicts its length, is rejected before anything is read, and a folder's weights
are complete or absent.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import ml_dtypes
import numpy as np

from lifecycle.core.files import write_text
from lifecycle.weights.families.layout import Index, Shape
from lifecycle.weights.families.settings import WeightsError
from lifecycle.weights.tensor_parts import read_bytes, read_part

WEIGHTS = "model.safetensors"
SUFFIX = ".safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_FILE_BYTES = 5_000_000_000  # the usual size of a shard
LARGEST_HEADER_BYTES = 100_000_000  # the format's own limit

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),  # these two with scales in other tensors: `block_scaled.py`
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),  # these with scales too: `packed_integers.py`
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),  # which ids a drafter has
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor's dtype, shape and byte range."""

    path: Path
    dtype: np.dtype
    shape: Shape
    offset: int


class SafetensorsReader:
    """The tensors of one file, or of all files of a folder; a `TensorSource`.

    Raises `WeightsError` for a path without safetensors, a truncated file, an index that names a missing file or
    tensor, and a tensor whose dtype is not in `DTYPES`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        for file in _files(path):
            for name, entry in _read_header(file).items():
                if name in self._entries:
                    other = self._entries[name].path.name
                    raise WeightsError(f"{path}: tensor {name} is in {other} and in {file.name}; remove one of them")
                self._entries[name] = entry
        _check_index(path, self._entries)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape by name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtype(self, name: str) -> np.dtype:
        """A tensor's dtype."""
        return self._entries[name].dtype

    def read(self, name: str, index: Index) -> np.ndarray:
        """A part of a tensor, in its own dtype."""
        entry = self._entries[name]
        if not entry.shape:
            return _read_rows(entry, 0, 1).reshape(())
        return read_part(entry.shape, entry.dtype, index, partial(_read_rows, entry))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder of weights")
    if (path / INDEX).is_file():
        files = [path / name for name in sorted(set(weight_map(path / INDEX).values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise WeightsError(f"{path / INDEX} names missing files: {', '.join(missing)}; copy them too")
        return files
    files = [path / WEIGHTS] if (path / WEIGHTS).is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        pickled = [*path.glob("*.bin"), *path.glob("*.pth")]
        why = f"; {pickled[0].name} is a pickle, which may run code: convert it to safetensors" if pickled else ""
        raise WeightsError(f"{path}: no {WEIGHTS} here, nor any other safetensors file{why}")
    return files


def weight_map(index: Path, source: str | None = None) -> dict[str, str]:
    """Each tensor's file, as an index says. Raises `WeightsError`, which names `source` if that is given, for a damaged
    index, and for one that names anything but safetensors files of its folder."""
    source = source or str(index)
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise TypeError("its weight_map does not map each tensor to a file")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{source}: not an index of tensors ({error}); copy it again") from None
    if invalid := [name for name in files.values() if not _is_plain(name)]:
        raise WeightsError(
            f"{source}: {invalid[0]!r} is not the name of a safetensors file in the same folder; download the model "
            "again"
        )
    return files


def _is_plain(name: str) -> bool:
    return name.endswith(SUFFIX) and PurePath(name).name == name and name.isprintable()


def _check_index(path: Path, entries: Mapping[str, Entry]) -> None:
    if not (path / INDEX).is_file():
        return
    listed = weight_map(path / INDEX)
    wrong = [f"{name} is not in {file}" for name, file in listed.items()
             if name not in entries or entries[name].path.name != file]  # fmt: skip
    wrong += [f"{name} is in no line of it" for name in entries if name not in listed]
    if wrong:
        raise WeightsError(f"{path / INDEX} does not fit its files:\n" + listing(wrong))


def listing(lines: Sequence[str], most: int = 60) -> str:
    """Indented lines; more than `most` are counted."""
    rest = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(f"  {line}" for line in [*lines[:most], *rest])


def _read_header(path: Path) -> dict[str, Entry]:
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER_BYTES):
                raise ValueError(f"{size} bytes with a header of {length}")
            tree: dict[str, Any] = json.loads(file.read(length))
        tree.pop("__metadata__", None)
        entries = {name: _entry(path, name, fields, 8 + length) for name, fields in tree.items()}
        end = 8 + length + max((fields["data_offsets"][1] for fields in tree.values()), default=0)
        if end != size:
            raise ValueError(f"{size} bytes, its header says {end}")
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}); export or copy it again") from None
    return entries


def _entry(path: Path, name: str, fields: Mapping[str, Any], start: int) -> Entry:
    dtype = DTYPES.get(fields["dtype"])
    if dtype is None:
        raise WeightsError(
            f"{path}: tensor {name} is of dtype {fields['dtype']}; weights are read from {', '.join(DTYPES)}: "
            "convert it to one of these"
        )
    shape = tuple(fields["shape"])
    begin, end = fields["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for {name} of shape {shape}")
    return Entry(path, dtype, shape, start + begin)


def _read_rows(entry: Entry, start: int, stop: int) -> np.ndarray:
    """Rows of the first dimension; a scalar is one row."""
    shape = entry.shape[1:]
    row = math.prod(shape) * entry.dtype.itemsize
    data = read_bytes(entry.path, entry.offset + start * row, (stop - start) * row)
    return data.view(entry.dtype).reshape(stop - start, *shape)


@dataclass(frozen=True)
class Planned:
    """A tensor to be written."""

    dtype: np.dtype
    shape: Shape

    @property
    def num_bytes(self) -> int:
        """The tensor's size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    folder: Path,
    tensors: Mapping[str, Planned],
    read: Callable[[str], np.ndarray],
    largest_file_bytes: int = LARGEST_FILE_BYTES,
) -> None:
    """Writes tensors one by one, as `read` returns them: one file if they fit, else several and an index.

    Files are renamed to their final names when all of them are complete. The index is written before the first rename
    and removed after the last old file: a folder with only some of its files is rejected with the names of the others.
    The same tensors give the same bytes.
    """
    for old in [*folder.glob("model*.safetensors"), *folder.glob("*.safetensors.partial"), *folder.glob(INDEX)]:
        old.unlink()
    groups = _groups(tensors, largest_file_bytes)
    num = len(groups)
    files = [WEIGHTS] if num == 1 else [f"model-{i:05}-of-{num:05}.safetensors" for i in range(1, num + 1)]
    for file, names in zip(files, groups, strict=True):
        write_file(_partial(folder / file), names, tensors, read)
    if num > 1:
        weight_map = {name: file for file, names in zip(files, groups, strict=True) for name in names}
        total = {"total_size": sum(tensor.num_bytes for tensor in tensors.values())}
        write_text(folder / INDEX, json.dumps({"metadata": total, "weight_map": weight_map}, indent=2) + "\n")
    for file in files:
        _partial(folder / file).replace(folder / file)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _groups(tensors: Mapping[str, Planned], most: int) -> list[list[str]]:
    """Names file by file, in order; a tensor larger than a file gets its own."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.num_bytes > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.num_bytes
    return groups


def write_file(
    path: Path, names: Sequence[str], tensors: Mapping[str, Planned], read: Callable[[str], np.ndarray]
) -> None:
    """Writes some of the tensors as one file, not through another name: `write_safetensors` does that."""
    names = sorted(names, key=lambda name: -tensors[name].dtype.itemsize)  # so each is aligned to its dtype
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.num_bytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = np.ascontiguousarray(read(name), dtype=tensors[name].dtype)
            assert array.shape == tensors[name].shape, f"{name}: {array.shape} for {tensors[name].shape}"
            file.write(array.reshape(-1).view(np.uint8))
        file.flush()
        os.fsync(file.fileno())
