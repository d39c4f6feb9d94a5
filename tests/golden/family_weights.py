"""The golden models' weights: drawn from their names, so that no file need hold them.

The makers of golden values and the tests both call this; NumPy keeps `RandomState`'s stream the same in every version.
"""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MATRIX, NOISE = 1.5, 0.3  # far from initial values, so that no term can hide
CLAMPED = 5.0  # of gpt-oss's gates, so that some lie beyond its clamp at 7


def write_model(golden: Path, out: Path) -> None:
    """The model of a golden folder as published: `config.json` and `model.safetensors` in `out`."""
    shutil.copy(golden / "config.json", out)
    save_file(drawn(golden), out / "model.safetensors", metadata={"format": "pt"})


def drawn(folder: Path) -> dict[str, np.ndarray]:
    """Float32 tensors by published name, for the `config.json` and `tensors.json` (names and shapes) in `folder`."""
    family = json.loads((folder / "config.json").read_text())["model_type"]
    shapes = json.loads((folder / "tensors.json").read_text())
    norm = 0 if family.startswith("gemma") else 1  # Gemma stores its norms' scales less one
    return {name: _draw(name, tuple(shape), norm) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], norm: int) -> np.ndarray:
    """Norms' scales round `norm`, other vectors round zero, products that grow what they multiply by half."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name:
        values = norm + NOISE * noise
    elif len(shape) == 1 or name.endswith("bias"):
        values = NOISE * noise
    else:
        inputs = shape[-2] if len(shape) == 3 else shape[-1]  # gpt-oss stores its experts `[E, in, out]`
        scale = CLAMPED if "gate_up_proj" in name else MATRIX
        values = scale * inputs**-0.5 * noise
    return values.astype(np.float32)
