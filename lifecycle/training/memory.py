"""What fits on the devices: a step's batch, and a second copy of the state.

A batch that cannot fit is rejected before anything is read or compiled. `planning/search/footprint.py` has an estimate
of everything; this counts only what every step keeps, the inputs of all layers for the backward pass.
"""

import os
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp

from lifecycle.core.config import ConfigError
from lifecycle.core.typing import PyTree
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import compute_dtype
from lifecycle.parallel.axes import MeshConfig
from lifecycle.training.config import TrainConfig


def require_room(at: str, train: TrainConfig, model: ModelConfig, mesh: MeshConfig) -> None:
    """Raises `ConfigError`, naming the settings below `at`, if a device cannot hold its part of a micro-batch."""
    if (train.remat or {}).get("input") == "offload":  # they are in the host's memory
        return
    tokens = train.global_batch_size // train.grad_accum * train.seq_len / mesh.size  # every axis shards the inputs
    needed = tokens * model.d_model * model.num_layers * jnp.dtype(compute_dtype(model)).itemsize
    if needed > (held := device_bytes()):
        raise ConfigError(
            f"{at}: the inputs of {model.num_layers} layers for {tokens:,.0f} tokens per device need "
            f"{needed / 1e9:,.1f} GB, and a device has {held / 1e9:,.1f} GB; raise {at}.grad_accum, use more devices, "
            f"or lower {at}.global_batch_size={train.global_batch_size} or {at}.seq_len={train.seq_len}"
        )


def has_room(state: PyTree) -> bool:
    """Whether each of this process's devices can hold its part of `state` once more beside the most that it has held so
    far, with as much again for what the allocator cannot join. A CPU's devices do not say, and do not run out."""
    needed: dict[Any, int] = defaultdict(int)
    for shard in (shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards):
        needed[shard.device] += shard.data.nbytes
    known = {device: device.memory_stats() or {} for device in needed}
    return all(
        2 * needed[device] <= stats["bytes_limit"] - stats["peak_bytes_in_use"]
        for device, stats in known.items()
        if "bytes_limit" in stats and "peak_bytes_in_use" in stats
    )


def device_bytes() -> int:
    """The memory of one of this process's devices; CPU devices share the machine's."""
    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
