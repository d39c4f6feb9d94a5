"""Low-rank adapters in PEFT's published form: a folder of `adapter_config.json` and `adapter_model.safetensors`.

A tensor's name is that of the published matrix with `base_model.model.` before it and `lora_A.weight` or
`lora_B.weight` after it, `[rank, in]` and `[out, rank]`. What is added is `(alpha / rank) B A`, with `use_rslora`
`(alpha / sqrt(rank)) B A` (Hu et al. 2021; Kalajdzievski 2023). With `use_dora` an output's row of the sum has the
length in `lora_magnitude_vector` (Liu et al. 2024). Source of names and settings: peft 0.21, `tuners/lora/config.py`,
`utils/save_and_load.py`.

What must hold: nothing is silently ignored. A setting that would change the product and a tensor that has no place are
refused by name; the version is a hash of the numbers that are used, whatever happens to the files.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lifecycle.core.files import write_text
from lifecycle.core.json_file import read_json
from lifecycle.core.typing import Array, Float
from lifecycle.model.adapters import LowRank, Matrices, adapted_shapes
from lifecycle.model.config import ModelConfig
from lifecycle.model.lora import merged as merged_matrix
from lifecycle.model.params import Params
from lifecycle.weights.families.layout import Location
from lifecycle.weights.families.lookup import family_of
from lifecycle.weights.families.settings import WeightsError
from lifecycle.weights.names import is_stacked, layer_names
from lifecycle.weights.safetensors_files import Planned, SafetensorsReader, listing, write_file
from lifecycle.weights.tensor_parts import full_index

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B, MAGNITUDE = "base_model.model.", ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"

# Settings that say where an adapter comes from, or how it was made, or with what its files are consistent anyway.
OF_TRAINING = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
LARGEST = float(jnp.finfo(jnp.bfloat16).max)
CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # initial values that PEFT takes from the weights


class AdapterError(WeightsError):
    """An adapter that cannot be used with the model; the message lists why."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in host memory. `matrices`: float32, `a [rank, D]` and `b [rank, F]`, which has the scale."""

    matrices: Matrices
    version: str  # SHA-256 of the numbers, hexadecimal

    @property
    def rank(self) -> int:
        """The largest rank of a matrix."""
        return max(pair.a.shape[0] for pair in self.matrices.values())

    @property
    def has_magnitudes(self) -> bool:
        """Whether it is one of DoRA."""
        return any(pair.magnitude is not None for pair in self.matrices.values())


class Settings(BaseModel):
    """`adapter_config.json`; what is not here must be of `OF_TRAINING` or have a value without effect."""

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: str
    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0, allow_inf_nan=False)
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: list[str] | str | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True

    def faults(self) -> Iterator[str]:
        """What makes the adapter more than sums of low rank."""
        if self.peft_type != "LORA":
            yield f"peft_type={self.peft_type}: only LORA is supported"
        if self.bias != "none":
            yield f"bias={self.bias}: trained biases are not supported"
        if str(self.init_lora_weights).startswith(CHANGE_THE_BASE):
            yield (
                f"init_lora_weights={self.init_lora_weights} has changed the base weights; convert the adapter when "
                "PEFT saves it (path_initial_model_for_weight_conversion)"
            )
        for name, value in (self.model_extra or {}).items():
            if name not in OF_TRAINING and value:
                yield f"{name}={value} is not supported"
        for key in [*(self.rank_pattern or {}), *(self.alpha_pattern or {})]:
            if not all(part.isidentifier() or part.isdigit() for part in key.split(".")):
                yield f"{key!r} in a pattern is a regular expression; only names of modules are supported"

    def scale(self, module: str) -> tuple[int, float]:
        """The rank of a module's matrices, and what their product is multiplied by."""
        rank = _matching(self.rank_pattern, module, self.r)
        alpha = _matching(self.alpha_pattern, module, self.lora_alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matching[T](pattern: Mapping[str, T] | None, module: str, default: T) -> T:
    found = (value for key, value in (pattern or {}).items() if f".{module}".endswith(f".{key}"))
    return next(found, default)


def read_adapter(config: ModelConfig, folder: Path) -> Adapter:
    """The adapter in a folder, for a model of this config.

    Raises `AdapterError` listing the settings, tensors and shapes that do not fit, and `WeightsError` for damaged
    files.
    """
    settings, matrices = read_matrices(config, folder)
    scales = {array: settings.scale(module)[1] for array, module, _ in modules_of(config)}
    scaled = {array: replace(pair, b=pair.b * np.float32(scales[array])) for array, pair in matrices.items()}
    if faulty := [name for name, pair in scaled.items() if not _is_finite(pair)]:
        raise AdapterError(f"{folder}: values that are not finite numbers in the matrices of {', '.join(faulty[:8])}")
    return Adapter(scaled, numbers_hash(scaled))


def read_matrices(config: ModelConfig, folder: Path) -> tuple[Settings, Matrices]:
    """An adapter's settings, and its matrices without the scale."""
    path = folder / ADAPTER_WEIGHTS
    for needed in (folder / ADAPTER_CONFIG, path):
        if not needed.is_file():
            raise AdapterError(f"{folder}: no {needed.name} here; give the folder of an adapter as PEFT saves it")
    settings, source = _read_settings(folder / ADAPTER_CONFIG), SafetensorsReader(path)
    places = {module: (array, location) for array, module, location in modules_of(config)}
    if wrong := [*settings.faults(), *_misfits(config, settings, source, places)]:
        raise AdapterError(f"{folder} does not fit the model:\n{listing(wrong)}")
    return settings, {
        array: _matrix(config, source, module, location)
        for module, (array, location) in places.items()
        if PREFIX + module + A in source.shapes
    }


def _read_settings(path: Path) -> Settings:
    try:
        return Settings.model_validate(read_json(path, AdapterError))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors()]
        raise AdapterError(f"{path}:\n{listing(wrong)}") from None


def modules_of(config: ModelConfig) -> Iterator[tuple[str, str, Location]]:
    """Of each matrix that can be adapted: canonical name, the published module's, and where its tensor is."""
    layout = family_of(config).layout
    for array in adapted_shapes(config):
        location = layout.location(config, array)
        assert location is not None and location.transposed, f"{array} is the weight of a published linear layer"
        yield array, location.name.removesuffix(".weight"), location


def _misfits(
    config: ModelConfig,
    settings: Settings,
    source: SafetensorsReader,
    places: Mapping[str, tuple[str, Location]],
) -> Iterator[str]:
    """What is missing, unknown or misshapen, tensor by tensor."""
    shapes, held = adapted_shapes(config), source.shapes
    expected: set[str] = set()
    for module, (array, _) in places.items():
        (rows, columns), (rank, _) = shapes[array], settings.scale(module)
        both: dict[str, tuple[int, ...]] = {PREFIX + module + A: (rank, rows), PREFIX + module + B: (columns, rank)}
        both |= {PREFIX + module + MAGNITUDE: (columns,)} if settings.use_dora else {}
        expected |= both.keys()
        if _is_target(settings, module) or both.keys() & held.keys():
            yield from (f"missing {name}" for name in both if name not in held)
        yield from (
            f"{name}: shape {held[name]}, by the model and adapter_config.json {shape}"
            for name, shape in both.items()
            if name in held and held[name] != shape
        )
        yield from (
            f"{name} is of dtype {source.dtype(name)}" for name in both if name in held and _is_int(source, name)
        )
    for name in sorted(held.keys() - expected):
        yield f"{name}: not a tensor of a matrix that can be adapted, which are {', '.join(_last_parts(places))}"
    if not expected & held.keys():
        yield f"there are no tensors of an adapter in {ADAPTER_WEIGHTS}"


def _is_target(settings: Settings, module: str) -> bool:
    """Whether the settings say that the adapter must have this module."""
    extra = settings.model_extra or {}
    if (
        not isinstance(settings.target_modules, list)
        or extra.get("layers_to_transform")
        or extra.get("exclude_modules")
    ):
        return False
    return any(f".{module}".endswith(f".{target}") for target in settings.target_modules)


def _is_int(source: SafetensorsReader, name: str) -> bool:
    return not jnp.issubdtype(source.dtype(name), jnp.floating)


def _last_parts(modules: Mapping[str, Any]) -> Sequence[str]:
    return list(dict.fromkeys(module.rpartition(".")[2] for module in modules))


def _matrix(config: ModelConfig, source: SafetensorsReader, module: str, location: Location) -> LowRank:
    def read(name: str) -> Any:
        return source.read(name, full_index(source.shapes[name])).astype(np.float32)

    a, b = read(PREFIX + module + A), read(PREFIX + module + B).T
    columns = slice(None) if location.columns is None else location.columns(config)
    ordered: Any = np.ascontiguousarray(b[:, columns])
    magnitude = PREFIX + module + MAGNITUDE
    return LowRank(a, ordered, read(magnitude)[columns] if magnitude in source.shapes else None)


def _is_finite(pair: LowRank) -> bool:
    """Also as bfloat16, whose largest number is less than float32's; a NaN is not less than any."""
    return all(bool((np.abs(side) <= LARGEST).all()) for side in jax.tree.leaves(pair))


def numbers_hash(matrices: Matrices) -> str:
    """An adapter's version: SHA-256 of its numbers and their names, hexadecimal."""
    whole = hashlib.sha256()
    for name in sorted(matrices):
        for array in jax.tree.leaves(matrices[name]):
            whole.update(f"{name} {array.shape} ".encode())
            whole.update(np.ascontiguousarray(array))
    return whole.hexdigest()


def save_adapter(config: ModelConfig, adapter: Adapter, folder: Path, base_model: str) -> None:
    """Writes an adapter's folder, in float32, as PEFT reads it; the scale is in `B`. `base_model`: its name or path."""
    ranks = {
        module: adapter.matrices[array].a.shape[0]
        for array, module, _ in modules_of(config)
        if array in adapter.matrices
    }
    other = {module: rank for module, rank in ranks.items() if rank != adapter.rank}
    sizes = {"r": adapter.rank, "lora_alpha": adapter.rank, "rank_pattern": other, "alpha_pattern": other}
    save_matrices(config, adapter.matrices, folder, base_model, sizes | {"use_dora": adapter.has_magnitudes})


def save_matrices(
    config: ModelConfig, matrices: Matrices, folder: Path, base_model: str, sizes: Mapping[str, Any]
) -> None:
    """Writes an adapter's folder; `sizes`: the settings that say how its matrices are used."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, modules = (
        published_tensors(config, matrices),
        [m for array, m, _ in modules_of(config) if array in matrices],
    )
    planned = {name: Planned(array.dtype, array.shape) for name, array in tensors.items()}
    write_file(folder / ADAPTER_WEIGHTS, list(planned), planned, tensors.__getitem__)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model}
    settings |= {"target_modules": modules, **sizes}
    write_text(folder / ADAPTER_CONFIG, json.dumps(settings, indent=2) + "\n")


def published_tensors(config: ModelConfig, matrices: Matrices) -> dict[str, np.ndarray]:
    """An adapter's tensors by PEFT's names."""
    tensors: dict[str, np.ndarray] = {}
    for array, module, location in modules_of(config):
        if (pair := matrices.get(array)) is None:
            continue
        order = slice(None) if location.columns is None else np.argsort(location.columns(config))
        tensors |= {PREFIX + module + A: np.asarray(pair.a), PREFIX + module + B: np.asarray(pair.b)[:, order].T}
        if pair.magnitude is not None:
            tensors[PREFIX + module + MAGNITUDE] = np.asarray(pair.magnitude)[order]
    return tensors


def merged(params: Params, adapter: Adapter) -> Params:
    """The parameters, plain arrays, with the adapter added to them, in float32 and rounded once."""

    def leaf(path: Any, array: Any) -> Any:
        names = list(layer_names(path, array)) if is_stacked(path, array) else []
        if not adapter.matrices.keys() & set(names):
            return array
        return jnp.stack([_sum(layer, adapter.matrices.get(name)) for layer, name in zip(array, names, strict=True)])

    return jax.tree_util.tree_map_with_path(leaf, params)


def _sum(matrix: Float[Array, "D F"], pair: LowRank | None) -> Float[Array, "D F"]:
    if pair is None:
        return matrix
    return merged_matrix(matrix, *(jax.tree.map(jnp.asarray, (pair.a, pair.b, pair.magnitude)))).astype(matrix.dtype)
