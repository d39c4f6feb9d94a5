"""Bundles whose matrices are int4 in groups, as compressed-tensors writes them (`pack-quantized`, 0.20).

A matrix `X.weight [out, in]` becomes `X.weight_packed`, eight inputs in an int32, the first in the lowest bits, with 8
added; `X.weight_scale [out, groups]` and `X.weight_shape`. Matrices that `kernels/group_scaled.py` cannot cut into
groups of 32, and all that is no layer's matrix, stay as they are. What must hold: `weights/packed_integers.py` reads
the same values.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lifecycle.core.files import write_text
from lifecycle.kernels.group_scaled import GroupScaled, group_scaled
from lifecycle.kernels.quantised import GROUP
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.model.quantised import is_quantised
from lifecycle.model.weight_formats import is_table
from lifecycle.weights.arrays import array_shapes, declarations
from lifecycle.weights.families.layout import Published, published_tensors, write_tensor
from lifecycle.weights.families.lookup import family_of
from lifecycle.weights.names import unstack
from lifecycle.weights.packed_integers import PACKED, SCALE, SHAPE, WORD
from lifecycle.weights.published import CONFIG, FLOAT32, write_config
from lifecycle.weights.safetensors_files import Planned, write_safetensors

BITS = 4
WEIGHT = ".weight"

_grouped = jax.jit(group_scaled, static_argnums=1)


def write_pack_quantised(config: ModelConfig, params: Params, folder: Path, **token_ids: int) -> None:
    """Writes the weights, tensor by tensor, and `config.json`."""
    flat = unstack(params)
    matrices = {name for name, known in declarations(config).items() if is_quantised(known) and not is_table(known)}
    tensors = published_tensors(config, family_of(config).layout, array_shapes(config))

    def read(array: str, expert: int | None) -> np.ndarray:
        return np.asarray(flat[array] if expert is None else flat[array][expert], np.float32)

    def whole(published: Published) -> np.ndarray:
        return write_tensor(config, published, read, FLOAT32)

    planned: dict[str, Planned] = {}
    makers: dict[str, Callable[[], np.ndarray]] = {}
    plain: list[str] = []
    for name, published in tensors.items():
        if _is_packed(name, published, matrices):
            parts = _parts(name.removesuffix(WEIGHT), published, partial(whole, published))
        else:
            parts = {name: (Planned(FLOAT32, published.shape), partial(whole, published))}
            plain.append(name)
        for part, (plan, make) in parts.items():
            planned[part], makers[part] = plan, make
    write_safetensors(folder, planned, lambda name: makers[name]())
    write_config(config, folder, FLOAT32, **token_ids)
    path = folder / CONFIG
    ignored = [name.removesuffix(WEIGHT) for name in plain if name.endswith(WEIGHT) and len(tensors[name].shape) > 1]
    tree = json.loads(path.read_text(encoding="utf-8")) | {"quantization_config": _quantisation(["lm_head", *ignored])}
    write_text(path, json.dumps(tree, indent=2) + "\n")


def _is_packed(name: str, published: Published, matrices: set[str]) -> bool:
    shape = published.shape
    is_whole = len(shape) == 2 and shape[1] % GROUP == 0 and name.endswith(WEIGHT)
    return is_whole and all(part.array in matrices and part.location.transposed for part in published.parts)


def _parts(
    name: str, published: Published, whole: Callable[[], np.ndarray]
) -> dict[str, tuple[Planned, Callable[[], np.ndarray]]]:
    """A matrix's tensors: what each is, and how it is made."""
    outputs, inputs = published.shape

    def grouped() -> GroupScaled:
        return _grouped(whole().T, BITS)

    return {
        name + PACKED: (
            Planned(np.dtype(np.int32), (outputs, inputs * BITS // WORD)),
            lambda: packed_words(np.asarray(grouped().values.astype(jnp.int8)).T),
        ),
        name + SCALE: (
            Planned(np.dtype(ml_dtypes.bfloat16), (outputs, inputs // GROUP)),
            lambda: np.ascontiguousarray(np.asarray(grouped().scale).T),
        ),
        name + SHAPE: (Planned(np.dtype(np.int64), (2,)), lambda: np.array(published.shape, np.int64)),
    }


def packed_words(values: np.ndarray) -> np.ndarray:
    """Integers `[out, in]` from -8 to 7 as int32, eight in each."""
    nibbles = (values.astype(np.int64) + 8).astype(np.uint32).reshape(len(values), -1, WORD // BITS)
    shifts = np.arange(0, WORD, BITS, dtype=np.uint32)
    return np.bitwise_or.reduce(nibbles << shifts, axis=-1).view(np.int32)


def _quantisation(ignored: list[str]) -> dict[str, Any]:
    weights = {"num_bits": BITS, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ignored,
    }
