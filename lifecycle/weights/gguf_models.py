"""A model in a GGUF file: its config and tensors read, and a file written, tensor by tensor.

What must hold: a setting that the decoder does not compute, or llama.cpp would not, is refused by name; a file appears
whole or not at all. A norm's scale is stored as llama.cpp multiplies by it, with Gemma's 1 added.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_VERSION
from gguf.gguf_writer import GGUFWriter

from lifecycle.core.config import ConfigError
from lifecycle.core.files import temporary
from lifecycle.model.config import ModelConfig
from lifecycle.weights.arrays import array_shapes
from lifecycle.weights.families.family import Family, differences
from lifecycle.weights.families.layout import Index, Shape, published_tensors, write_tensor
from lifecycle.weights.families.settings import WeightsError
from lifecycle.weights.gguf import GgufFile
from lifecycle.weights.gguf_architectures import (
    ARCHITECTURES,
    BIASES,
    EMBED,
    EXPERTS,
    REQUIRED,
    TIED,
    VOCAB,
    architecture_of,
    facts,
)
from lifecycle.weights.gguf_encodings import Encoding, quantise
from lifecycle.weights.gguf_mixtures import Mixture
from lifecycle.weights.gguf_rope import FACTORS
from lifecycle.weights.tensor_parts import full_index

FLOAT32 = np.dtype(np.float32)
NORM = "norm.weight"  # how the names of norms end, also of queries' and keys'
OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.freq_base")
IMPORT = "import the model from safetensors"

type Read = Callable[[str, int | None], np.ndarray]  # an array by canonical name, or one expert's part of it


def table_of(config: ModelConfig) -> Family:
    """The family's architecture in llama.cpp. Raises `WeightsError` if it has none."""
    if config.family not in ARCHITECTURES:
        raise WeightsError(f"family {config.family!r} is not written to GGUF; {', '.join(ARCHITECTURES)} are")
    return ARCHITECTURES[config.family]


def config_of(file: GgufFile) -> ModelConfig:
    """The model in a file; raises `WeightsError` for another architecture or an unsupported setting."""
    name = file.metadata.get("general.architecture")
    own = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    table = architecture_of(str(name), bool(own.get(EXPERTS)))
    if table is None:
        known = dict.fromkeys(table.architecture for table in ARCHITECTURES.values())
        experts = " with experts" if own.get(EXPERTS) else ""
        raise WeightsError(
            f"{file.path}: architecture {name!r}{experts} is not supported in GGUF, {', '.join(known)} are: {IMPORT}"
        )
    _require_numbers(file, own)
    tree = {key: _short(value) for key, value in own.items()} | facts(file.shapes)
    if FACTORS in file.shapes:
        tree[FACTORS] = file.read(FACTORS, full_index(file.shapes[FACTORS]))
    try:
        config = table.config_from(tree)
    except (WeightsError, ConfigError) as error:
        raise WeightsError(f"{file.path}: {error}") from None
    _require_computed(file, own, config)
    return config


def _require_numbers(file: GgufFile, own: Mapping[str, Any]) -> None:
    """Checks that the config's settings are present, each one number (some models have one per layer)."""
    name = file.metadata["general.architecture"]
    required = [*REQUIRED, *([] if EMBED in file.shapes else [VOCAB])]
    if missing := [f"{name}.{key}" for key in required if key not in own]:
        raise WeightsError(f"{file.path}: its metadata lacks {', '.join(missing)}; {IMPORT}")
    given = {key: own[key] for key in (*required, *OPTIONAL) if key in own}
    wrong = [f"{name}.{key}={value!r}" for key, value in given.items() if type(value) not in (int, float) or value <= 0]
    if wrong:
        raise WeightsError(f"{file.path}: {', '.join(wrong)}: expected one positive number; {IMPORT}")


def _require_computed(file: GgufFile, own: Mapping[str, Any], config: ModelConfig) -> None:
    """Refuses the keys that no setting reads, unless their values change nothing."""
    computed = {
        "rope.dimension_count": config.head_dim, "attention.value_length": config.head_dim,
        "attention.sliding_window": config.window or 0, "expert_shared_count": 0, "expert_weights_scale": 1.0,
        "leading_dense_block_count": 0, "nextn_predict_layers": 0,
    }  # fmt: skip
    name = file.metadata["general.architecture"]
    wrong = [f"{name}.{key}={own[key]!r}" for key, value in computed.items() if own.get(key, value) != value]
    if wrong:
        raise WeightsError(f"{file.path}: {', '.join(wrong)} is not supported; {IMPORT}")


def _short(value: Any) -> Any:
    """The shortest decimal that is this float32: the metadata has single precision, configs are written in decimals."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


class GgufTensors:
    """A `TensorSource` of a file's tensors as published ones have them: norms without the offset that a model adds."""

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self._file = file
        self._offset = np.float32(config.norm_offset)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Every tensor's shape by name."""
        return self._file.shapes

    def dtype(self, name: str) -> np.dtype:
        """float32."""
        return self._file.dtype(name)

    def read(self, name: str, index: Index) -> np.ndarray:
        """A part of a tensor, in float32."""
        values = self._file.read(name, index)
        return values - self._offset if name.endswith(NORM) else values


def metadata_of(config: ModelConfig) -> dict[str, Any]:
    """A model's keys in GGUF, and Llama 3's factors under the tensor's name; raises `WeightsError` naming what
    llama.cpp has no key for."""
    table = table_of(config)
    keys = table.keys_of(config)
    if wrong := differences(config, table.config_from(keys)):
        raise WeightsError(
            f"llama.cpp's architecture {table.architecture!r} has no key for {', '.join(wrong)}: it cannot run this "
            "model, so no GGUF is written"
        )
    return {key: value for key, value in keys.items() if key not in (TIED, BIASES)}


def write_gguf(config: ModelConfig, read: Read, path: Path, mixture: Mixture, more: Mapping[str, Any]) -> None:
    """Writes a model's file. `more` is the metadata beside the model's own: its name and tokenizer, by full keys.

    Memory holds one tensor in float32. Raises `WeightsError`, before a file is made, for a model that llama.cpp cannot
    run.
    """
    keys, table = metadata_of(config), table_of(config)
    tensors = published_tensors(config, table.layout, array_shapes(config))
    extra = {FACTORS: np.asarray(keys.pop(FACTORS), np.float32)} if FACTORS in keys else {}
    shapes = {name: tensor.shape for name, tensor in tensors.items()} | {name: x.shape for name, x in extra.items()}
    encodings = {name: mixture.encoding(name, shape, config) for name, shape in shapes.items()}

    def shifted(array: str, expert: int | None) -> np.ndarray:
        values = read(array, expert)
        return values + np.float32(config.norm_offset) if array.endswith("norm.scale") else values

    writer = GGUFWriter(None, table.architecture)
    for key, value in {f"{table.architecture}.{key}": value for key, value in keys.items()}.items():
        _add(writer, key, value)
    _add(writer, "general.file_type", mixture.file_type)
    _add(writer, "general.quantization_version", GGML_QUANT_VERSION)
    for key, value in more.items():
        _add(writer, key, value)
    for name, shape in shapes.items():
        writer.add_tensor_info(name, shape, FLOAT32, _num_bytes(shape, encodings[name]), encodings[name].kind)
    unfinished = temporary(path)
    try:
        writer.write_header_to_file(unfinished)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in shapes:
            values = extra[name] if name in extra else write_tensor(config, tensors[name], shifted, FLOAT32)
            _require_range(name, values, encodings[name])
            writer.write_tensor_data(quantise(values, encodings[name]))
        writer.close()
        _flush(unfinished)
    except BaseException:
        writer.close()
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(path)


def _require_range(name: str, values: np.ndarray, encoding: Encoding) -> None:
    """Refuses values that float16, of the matrix or of its scales, would make infinite."""
    largest = np.abs(values).max()
    if encoding.name not in ("F32", "BF16") and np.isfinite(largest) and largest > np.finfo(np.float16).max:
        raise WeightsError(f"{name}: a weight of {largest:.3g} is beyond float16; export with --encoding bf16")


def _num_bytes(shape: Shape, encoding: Encoding) -> int:
    return math.prod(shape) // encoding.values * encoding.num_bytes


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Adds a key; numbers have 32 bits, as llama.cpp reads them."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add = kinds.get(type(value), writer.add_array)
    add(key, value)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
