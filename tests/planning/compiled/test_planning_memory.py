"""Bytes per device of what a program takes, and the parts of its peak."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.planning.chips import CHIPS
from lifecycle.planning.compiled.compilation import Compilation
from lifecycle.planning.compiled.memory import bytes_by_part, device_memory


def test_bytes_are_those_of_a_devices_part() -> None:
    mesh = AbstractMesh((16, 4), ("fsdp", "tensor"))

    def array(dtype: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((640, 8), dtype, sharding=NamedSharding(mesh, P(*axes)))

    weights = {"a": array(jnp.float32, "fsdp", "tensor"), "b": array(jnp.float32)}
    parts = bytes_by_part(
        {"parameters": weights, "optimizer": (weights, weights), "cache": array(jnp.bfloat16, "fsdp")}
    )
    assert parts == {"parameters": 40 * 2 * 4 + 640 * 8 * 4, "optimizer": 2 * parts["parameters"], "cache": 40 * 8 * 2}


def test_the_parts_add_up_to_the_peak() -> None:
    compilation = Compilation("", peak_bytes=100, argument_bytes=60, code_bytes=5, host_bytes=7, compile_s=1.0)
    known = {"parameters": 20, "embedding": 4, "cache": 30}
    memory = device_memory(compilation, known, CHIPS["v5e"])
    assert (memory.parameters_bytes, memory.cache_bytes, memory.optimizer_bytes) == (24, 30, 0)
    assert (memory.other_arguments_bytes, memory.temporaries_bytes) == (6, 40)
    assert (memory.host_bytes, memory.hbm_bytes) == (7, CHIPS["v5e"].hbm_bytes)
