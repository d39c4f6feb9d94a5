"""Runs the programs that `lifecycle export BUNDLE OUT.stablehlo` wrote, with JAX and NumPy alone: a copy of this file
lies beside them as `generate.py`.

    python generate.py 1 317 2904        # token ids of a prompt; prints the ids that follow, greedily
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np


def read_weights(path: Path) -> dict[str, jax.Array]:
    """The arrays of a safetensors file: a header's length, a JSON header, the arrays."""
    data = np.memmap(path, np.uint8, mode="r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:start]))
    dtypes = {"F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}

    def array(dtype: str, shape: list[int], data_offsets: list[int]) -> jax.Array:
        begin, end = data_offsets
        return jnp.asarray(data[start + begin : start + end].view(dtypes[dtype]).reshape(shape))

    return {name: array(**entry) for name, entry in header.items() if name != "__metadata__"}


def generate(folder: Path, prompt: list[int], max_tokens: int) -> list[int]:
    """The ids that follow a prompt, each the likeliest, up to one that ends an answer."""
    facts = json.loads((folder / "program.json").read_text())
    prefill, decode = (
        jax.jit(jax.export.deserialize(bytearray((folder / f"{name}.bin").read_bytes())).call, donate_argnums=1)
        for name in ("prefill", "decode")
    )
    weights = read_weights(folder / "model.safetensors")
    cache = [jnp.zeros(shape, dtype) for shape, dtype in facts["cache"]]
    chunk_size, length = facts["prefill_size"], facts["length"]
    if not 0 < len(prompt) < length:
        raise SystemExit(f"a prompt of {len(prompt)} ids: give 1 to {length - 1}")

    def likeliest(program: Any, ids: list[int], start: int, size: int) -> int:
        """The id that follows `ids`, which begin at position `start`; padded to the program's `size`."""
        nonlocal cache
        padding = size - len(ids)
        tokens = jnp.array([ids + [0] * padding], jnp.int32)
        positions = jnp.array([[*range(start, start + len(ids)), *[length] * padding]], jnp.int32)
        logits, cache = program(weights, cache, tokens, positions, jnp.array([len(ids) - 1], jnp.int32))
        return int(logits[0].argmax())

    chunks = [(prompt[start : start + chunk_size], start) for start in range(0, len(prompt), chunk_size)]
    out = [likeliest(prefill, ids, start, chunk_size) for ids, start in chunks][-1:]
    for position in range(len(prompt), min(length, len(prompt) + max_tokens) - 1):
        if out[-1] in facts["ends"]:
            break
        out.append(likeliest(decode, out[-1:], position, 1))
    return out


if __name__ == "__main__":
    print(*generate(Path(__file__).parent, [int(word) for word in sys.argv[1:]], 64))
