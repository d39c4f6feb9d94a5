"""Which quantised checkpoints are read: what `quantization_config` of a published `config.json` may say.

Those of any family are read by `weights/packed_integers.py`, a family's own kind by `weights/block_scaled.py`. How many
bits there are, and how large a group is, follows from the tensors.
"""

from collections.abc import Collection, Mapping
from typing import Any

# By `quant_method`: the keys that say how integers are packed, and the values that are read; absent is one of them.
METHODS: Mapping[str, Mapping[str, Collection[Any]]] = {
    "gptq": {"checkpoint_format": (None, "gptq"), "bits": (4, 8)},
    "awq": {"version": (None, "gemm", "GEMM"), "bits": (None, 4), "w_bit": (None, 4)},
    "compressed-tensors": {
        "format": ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
        "sparsity_config": (None, {}),
    },
}


def unsupported(given: Mapping[str, Any], own: str | None) -> str | None:
    """The key and value of a `quantization_config` that is not read; None if it is. `own`: the family's method."""
    method = given.get("quant_method")
    if method in (None, own):
        return None
    if method not in METHODS:
        return f"quant_method={method!r}"
    wrong = (key for key, values in METHODS[method].items() if given.get(key) not in values)
    return next((f"quant_method={method!r} and {key}={given.get(key)!r}" for key in wrong), None)
