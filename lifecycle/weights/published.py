"""Weights and config in the layout that other tools open: safetensors with per-layer names, and `config.json`.

The family defines the names and keys (`weights/families`). What must hold: what is saved is loaded bit for bit; memory
holds one tensor in addition to the final shards; and a checkpoint that does not fit is rejected before loading, with
every missing, unknown or misshapen tensor listed.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from lifecycle.core.files import write_text
from lifecycle.core.json_file import read_json
from lifecycle.core.typing import PyTree
from lifecycle.model.config import ModelConfig
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import Params, abstract_params, parameters
from lifecycle.weights.arrays import array_shapes
from lifecycle.weights.block_scaled import BlockScaled
from lifecycle.weights.families.family import Family, Wrapper
from lifecycle.weights.families.layout import (
    EXPERT,
    OF_MODULES,
    Index,
    Layout,
    Shape,
    TensorSource,
    published_tensors,
    read_array,
    write_tensor,
)
from lifecycle.weights.families.lookup import config_from, family_of
from lifecycle.weights.families.settings import WeightsError
from lifecycle.weights.names import canonical_name, is_stacked, layer_names
from lifecycle.weights.packed_integers import PackedIntegers
from lifecycle.weights.safetensors_files import (
    INDEX,
    LARGEST_FILE_BYTES,
    WEIGHTS,
    Planned,
    SafetensorsReader,
    listing,
    write_safetensors,
)
from lifecycle.weights.tensor_parts import full_index

__all__ = [
    "CONFIG", "INDEX", "WEIGHTS", "WeightsError", "config_from_hf", "config_to_hf", "family_of",
    "held_config", "load_config", "load_weights", "params_from", "save_weights", "write_weights",
]  # fmt: skip

CONFIG = "config.json"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
FLOAT32 = np.dtype(np.float32)
ALWAYS_FLOAT32 = "selection_bias"  # its updates are smaller than bfloat16's resolution

type Convert = Callable[[Parameter, jax.Array], Any]
type Spans = tuple[tuple[int, int], ...]  # (start, stop) per dimension


def config_to_hf(config: ModelConfig, dtype: np.dtype = FLOAT32, **token_ids: int) -> dict[str, Any]:
    """The published form of a config; `token_ids` are `bos_token_id`, `eos_token_id`, `pad_token_id`. A missing one is
    written as null: without the key, another tool uses the family's own, which may be outside this vocabulary.

    Raises `WeightsError` naming what the family's form cannot express.
    """
    more = {"initializer_range": config.d_model**-0.5, "use_cache": True, "torch_dtype": dtype.name}
    return family_of(config).config_to(config) | more | dict.fromkeys(TOKEN_IDS) | token_ids


def config_from_hf(tree: Mapping[str, Any]) -> ModelConfig:
    """Reads a published config; rejects families and settings that this decoder does not support."""
    return config_from(tree)


def load_config(folder: Path, may_score: bool = False) -> ModelConfig:
    """The config of a bundle's folder; raises `WeightsError` for a model that scores texts unless it may be one."""
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsError(f"{folder}: no {CONFIG} here; give a bundle's folder")
    config = config_from_hf(read_json(path, WeightsError))
    if config.has_score and not may_score:
        raise WeightsError(
            f"{folder}: a reward model, which scores texts and predicts none; it is for train.STAGE.from of a stage "
            "with objective=reward_model or process_reward_model"
        )
    return config


def held_config(config: ModelConfig, source: TensorSource) -> ModelConfig:
    """The config of the model that a source holds: some tools keep the key of prediction modules and drop the
    modules."""
    module = family_of(config).layout.location(config, f"{OF_MODULES}0.projection")
    is_there = module is not None and module.name in source.shapes
    return config if is_there else config.model_copy(update={"num_mtp_modules": 0})


def load_weights(
    config: ModelConfig,
    path: Path,
    shardings: PyTree | None = None,
    *,
    like: PyTree | None = None,
    convert: Convert | None = None,
) -> Params:
    """The parameters in a folder or file of safetensors, sharded by `shardings` (a tree like the parameters'), or
    unsharded on this process's first device.

    `like` gives the dtypes, as a tree like that of the parameters: None for float32, as in training, or
    `abstract_in_use(config)`; of what it leaves out at its top, nothing is read. Each array goes to its devices in its
    final dtype; there is no second copy. `convert` makes another form of an array once it is there, before the next is
    read. Raises `WeightsError` listing everything that does not fit.
    """
    return params_from(config, family_of(config), open_weights(config, path), str(path), shardings, like, convert)


def open_weights(config: ModelConfig, path: Path) -> TensorSource:
    """The tensors of the config's model in a folder or file of safetensors; for a model of several parts, the text
    model's."""
    source, wrapper = BlockScaled(PackedIntegers(SafetensorsReader(path))), family_of(config).wrapper
    if wrapper is None or not any(name.startswith(wrapper.prefix) for name in source.shapes):
        return source
    return _TextPart(source, wrapper)


class _TextPart:
    """The text model's tensors, without their prefix, and those that belong to no part."""

    def __init__(self, source: TensorSource, wrapper: Wrapper) -> None:
        self._source = source
        own = [name for name in source.shapes if not name.startswith(wrapper.others)]
        self._names = {name.removeprefix(wrapper.prefix): name for name in own}

    @property
    def shapes(self) -> Mapping[str, Shape]:
        shapes = self._source.shapes
        return {name: shapes[there] for name, there in self._names.items()}

    def dtype(self, name: str) -> np.dtype:
        return self._source.dtype(self._names[name])

    def read(self, name: str, index: Index) -> np.ndarray:
        return self._source.read(self._names[name], index)


def params_from(
    config: ModelConfig,
    family: Family,
    source: TensorSource,
    where: str,
    shardings: PyTree | None = None,
    like: PyTree | None = None,
    convert: Convert | None = None,
) -> Params:
    """The parameters in `source`, which has a family's layout, each shard read separately; `where` names the source in
    errors."""
    require_fit(config, family, source, where)
    wanted: PyTree = abstract_params(config) if like is None else like
    read = {name: known for name, known in parameters(config).items() if name in wanted}
    if shardings is None:
        shardings = jax.tree.map(lambda _: SingleDeviceSharding(jax.local_devices()[0]), wanted)

    def leaf(path: Any, shape: Any, sharding: Sharding, declared: Parameter) -> Any:
        stacked = is_stacked(path, shape)
        arrays = list(layer_names(path, shape)) if stacked else [canonical_name(path)]

        def fill(spans: Spans, out: np.ndarray) -> None:
            index = tuple(slice(*span) for span in spans)
            if not stacked:
                read_array(config, family.layout, source, arrays[0], index, out)
                return
            for position, array in enumerate(arrays[index[0]]):
                read_array(config, family.layout, source, array, index[1:], out[position])

        array = _sharded(shape.shape, sharding, np.dtype(shape.dtype), fill)
        return array if convert is None else jax.block_until_ready(convert(declared, array))

    return jax.tree_util.tree_map_with_path(leaf, wanted, shardings, read)


def _sharded(shape: Shape, sharding: Sharding, dtype: np.dtype, fill: Callable[[Spans, np.ndarray], None]) -> jax.Array:
    """An array made shard by shard: host memory holds one shard at a time, whatever the number of devices."""
    devices: dict[Spans, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        whole_index = index if index is not None else (slice(None),) * len(shape)
        spans = tuple(part.indices(size)[:2] for part, size in zip(whole_index, shape, strict=True))
        devices.setdefault(spans, []).append(device)
    shards: list[jax.Array] = []
    for spans, owners in devices.items():
        part = np.empty([stop - start for start, stop in spans], dtype)
        fill(spans, part)
        shards += jax.block_until_ready([jax.device_put(part, owner) for owner in owners])
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def require_fit(config: ModelConfig, family: Family, source: TensorSource, where: str) -> None:
    """Raises `WeightsError` unless `source` has the model's tensors and no others; names each that does not fit."""
    shapes = array_shapes(config)
    if unmapped := [array for array in shapes if family.layout.location(config, array) is None]:
        raise WeightsError(
            f"family {family.name!r} has no tensor for {', '.join(unmapped[:8])}; set another model.family"
        )
    expected = published_tensors(config, family.layout, shapes)
    published = source.shapes
    copied = family.layout.copied(config)  # not every file repeats them
    wrong = [f"missing {name}" for name in expected if name not in published and name not in copied]
    for name, tensor in expected.items():
        if name in published and published[name] != tensor.shape:
            wrong.append(f"{name}: shape {published[name]}, the config says {tensor.shape}")
    for name in sorted(set(published) - set(expected)):
        if family.layout.is_tensor_of(name, "head") and config.tie_embeddings:
            wrong += _unlike(
                source, name, family.layout.trunk["embed"].name, "the config ties it to (tie_word_embeddings)"
            )
        elif not family.ignores(config, name):
            wrong.append(f"unknown {name}")
    for name, array in copied.items():
        if published.get(name) == expected[name].shape:
            wrong += _unlike(source, name, family.layout.trunk[array].name, "a prediction module shares")
    if wrong:
        hint = _layers_hint(published, config)
        raise WeightsError(
            f"{where} does not fit its config:\n{listing(wrong)}\n{hint}use the {CONFIG} and all weight "
            "files of one model"
        )


def _unlike(source: TensorSource, copy: str, original: str, why: str) -> list[str]:
    """What is wrong with a copy of a tensor that does not equal it: some files of tied models have the head too."""
    shape = source.shapes.get(original)
    if shape is None or source.shapes[copy] != shape or not _is_equal(source, copy, original, shape):
        return [f"{copy} is not {original}, which {why}"]
    return []


def _is_equal(source: TensorSource, left: str, right: str, shape: Shape, rows: int = 4096) -> bool:
    spans = [(slice(start, min(start + rows, shape[0])), slice(0, shape[1])) for start in range(0, shape[0], rows)]
    return all(np.array_equal(source.read(left, span), source.read(right, span)) for span in spans)


def _layers_hint(shapes: Mapping[str, Shape], config: ModelConfig) -> str:
    numbers = [int(match[1]) for name in shapes if (match := re.search(r"\.(\d+)\.", name))]
    held = max(numbers, default=-1) + 1
    differs = config.moe is None and held != config.num_layers
    return f"the weights hold {held} layers, the config says {config.num_layers}; " if differs else ""


def save_weights(
    config: ModelConfig,
    params: Params,
    folder: Path,
    dtype: np.dtype | type = np.float32,
    largest_file_bytes: int = LARGEST_FILE_BYTES,
    **token_ids: int,
) -> None:
    """Writes the weights, tensor by tensor, and `config.json`; the same parameters give the same bytes."""
    leaves: dict[str, tuple[Any, int | None]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if is_stacked(path, leaf):
            leaves |= {name: (leaf, layer) for layer, name in enumerate(layer_names(path, leaf))}
        else:
            leaves[canonical_name(path)] = (leaf, None)

    def read(array: str, expert: int | None) -> np.ndarray:
        leaf, layer = leaves[array]
        part = leaf if layer is None else leaf[layer]
        return np.asarray(jax.device_get(part if expert is None else part[expert]))

    def dtypes(published: str, arrays: tuple[str, ...]) -> np.dtype:
        return FLOAT32 if arrays[0].endswith(ALWAYS_FLOAT32) else np.dtype(dtype)

    write_weights(config, read, folder, dtypes, largest_file_bytes)
    write_config(config, folder, np.dtype(dtype), **token_ids)


def write_weights(
    config: ModelConfig,
    read: Callable[[str, int | None], np.ndarray],
    folder: Path,
    dtypes: Callable[[str, tuple[str, ...]], np.dtype],
    largest_file_bytes: int = LARGEST_FILE_BYTES,
) -> None:
    """Writes a model in its family's layout, which must have a place for all of it (`Family.exported`). `read(array,
    expert)` returns an array by canonical name, or one expert's part of it; `dtypes(published name, arrays in it)`
    returns the stored dtype."""
    family = family_of(config)
    family.config_to(config)  # raises before anything is written
    tensors = published_tensors(config, family.layout, array_shapes(config))
    planned = {
        name: Planned(dtypes(name, tuple(part.array for part in tensor.parts)), tensor.shape)
        for name, tensor in tensors.items()
    }

    def write(name: str) -> np.ndarray:
        return write_tensor(config, tensors[name], read, planned[name].dtype)

    write_safetensors(folder, planned, write, largest_file_bytes)


def write_config(config: ModelConfig, folder: Path, dtype: np.dtype = FLOAT32, **token_ids: int) -> None:
    """Writes a bundle's `config.json`; `dtype` is recorded as the weights' dtype, `token_ids` as they are."""
    write_text(folder / CONFIG, json.dumps(config_to_hf(config, dtype, **token_ids), indent=2) + "\n")


def read_from(
    config: ModelConfig, layout: Layout, source: TensorSource, dtype: np.dtype | None
) -> Callable[[str, int | None], np.ndarray]:
    """The `read` of `write_weights` for a model in another file, in `dtype`, or without one in the dtypes of that file.

    A dequantised value is rounded once, to that dtype.
    """
    shapes = array_shapes(config)

    def read(array: str, expert: int | None) -> np.ndarray:
        shape, location = shapes[array], layout.location(config, array)
        assert location is not None
        index = full_index(shape) if expert is None else (slice(expert, expert + 1), *full_index(shape[1:]))
        stored = source.dtype(location.name.replace(EXPERT, str(expert))) if dtype is None else dtype
        out = np.empty([part.stop - part.start for part in index], stored)
        read_array(config, layout, source, array, index, out)
        return out if expert is None else out[0]

    return read
