"""Prediction modules of a model whose family has no place for them: the folder `modules` of a bundle.

Other tools open the bundle as the decoder that it is; nobody has published such modules, so the tensors have our names
(`mtp.0.projection`) and layout, `[in, out]`. What must hold: what is saved is loaded bit for bit; modules that do not
fit their model are rejected with what is wrong.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lifecycle.core.typing import PyTree
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, parameters
from lifecycle.model.stacks import MODULES
from lifecycle.weights.arrays import array_shapes
from lifecycle.weights.families.layout import OF_MODULES, Shape
from lifecycle.weights.families.settings import WeightsError
from lifecycle.weights.names import layer_names
from lifecycle.weights.published import FLOAT32, Convert
from lifecycle.weights.safetensors_files import Planned, SafetensorsReader, listing, write_safetensors
from lifecycle.weights.tensor_parts import full_index

FOLDER = "modules"  # in a bundle


def write_modules(config: ModelConfig, read: Callable[[str], np.ndarray], folder: Path) -> None:
    """Writes the prediction modules of a model into `folder`. `read` returns an array by its canonical name."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = {name: Planned(FLOAT32, shape) for name, shape in _shapes(config).items()}
    write_safetensors(folder, planned, lambda name: np.asarray(read(name), np.float32))


def load_modules(
    config: ModelConfig,
    path: Path,
    shardings: PyTree | None = None,
    *,
    like: PyTree,
    convert: Convert | None = None,
) -> Params:
    """As many modules of a folder as the config has, stacked below `mtp`; the arguments are those of `load_weights`.

    Raises `WeightsError` for modules of another model.
    """
    source = SafetensorsReader(path)
    wrong = [
        f"{name}: {'missing' if name not in source.shapes else f'shape {source.shapes[name]}'}, the model's is {shape}"
        for name, shape in _shapes(config).items()
        if source.shapes.get(name) != shape
    ]
    if wrong:
        raise WeightsError(f"{path} does not fit the model beside it:\n{listing(wrong)}\nuse all files of one bundle")

    def leaf(path: Any, known: Any, sharding: Any, declared: Any) -> Any:
        parts = [source.read(name, full_index(known.shape[1:])) for name in layer_names(path, known)]
        array = jax.device_put(np.stack(parts).astype(known.dtype), sharding)
        return array if convert is None else jax.block_until_ready(convert(declared, array))

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = jax.tree.map(lambda _: here, like) if shardings is None else shardings
    return jax.tree_util.tree_map_with_path(leaf, like, where, {MODULES: parameters(config)[MODULES]})


def _shapes(config: ModelConfig) -> dict[str, Shape]:
    return {name: shape for name, shape in array_shapes(config).items() if name.startswith(OF_MODULES)}
