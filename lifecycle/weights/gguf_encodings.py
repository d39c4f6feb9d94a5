"""GGML's encodings: how a GGUF file stores a matrix, block by block, read and written a full matrix at a time.

A row is divided into blocks of 32 to 256 values; a block holds small integers and their scales. The `gguf` package,
llama.cpp's own, has the layouts and ggml's values bit by bit, and writes all that are written here but the K-quants
(`k_quants.py`). What must hold: what is written reads back as llama.cpp reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from lifecycle.weights.k_quants import K_QUANTS

# Those that hold weights and that the package decodes (gguf 0.19: not Q1_0); others hold activations (Q8_1, Q8_K).
NAMES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S",
    "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
)  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """One of `enum ggml_type`."""

    kind: GGMLQuantizationType

    @property
    def name(self) -> str:
        """Its name in ggml, such as `Q4_K`."""
        return self.kind.name

    @property
    def values(self) -> int:
        """The number of values in a block."""
        return GGML_QUANT_SIZES[self.kind][0]

    @property
    def num_bytes(self) -> int:
        """The bytes of a block."""
        return GGML_QUANT_SIZES[self.kind][1]


ENCODINGS: dict[int, Encoding] = {kind.value: Encoding(kind) for kind in map(GGMLQuantizationType.__getitem__, NAMES)}


def encoding_named(name: str) -> Encoding:
    """The encoding with this name of ggml's."""
    return ENCODINGS[GGMLQuantizationType[name].value]


def dequantise(data: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The values, flat and in float32, of complete blocks given as bytes."""
    blocks = data.reshape(-1, encoding.num_bytes)
    with np.errstate(invalid="ignore", over="ignore"):  # any bytes may be a scale, also a NaN
        return dequantize(blocks, encoding.kind).astype(np.float32, copy=False).reshape(-1)


def quantise(values: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The bytes of a float32 matrix (of any number of dimensions), whose rows are whole numbers of blocks."""
    own: Callable[[np.ndarray], np.ndarray] | None = K_QUANTS.get(encoding.name)
    if own is not None:
        return own(values.reshape(-1, encoding.values)).reshape(-1)
    return np.ascontiguousarray(quantize(values, encoding.kind)).reshape(-1).view(np.uint8)
