"""Measures the peak memory of a restore onto several virtual devices: `python -m tests.multidevice.measure_restore
FOLDER [MEBIBYTES] [DEVICES]`.

Saves parameters of so many mebibytes and two moments of each on one mesh (`fsdp`), and restores them on another
(`tensor`) in a process of its own, whose peak resident size it prints beside the size of the state. 576 MiB on 4
devices: 1,430 MiB more than before, as glibc keeps freed arrays; 288 MiB with `MALLOC_MMAP_THRESHOLD_=65536`, which
returns them: 390 MiB more, 1.35 x the state.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

LAYERS, WIDTH = 8, 1024


def state_on(axis: str, mebibytes: int, devices: int, is_abstract: bool) -> dict:
    """Parameters in stacks of 8 layers, with two moments."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from lifecycle.parallel.axes import MeshConfig
    from lifecycle.parallel.mesh import build_mesh

    sharding = NamedSharding(build_mesh(MeshConfig(**{axis: devices})), P(None, axis))
    stacks = mebibytes * 2**20 // (4 * LAYERS * WIDTH**2)
    shape = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=sharding)
    params = {"blocks": {"0+1": {f"w{n}": shape for n in range(stacks)}}}
    state = {"params": params, "opt_state": {"mu": params, "nu": params}}
    if is_abstract:
        return state
    draw = jax.jit(lambda key: jax.random.normal(key, shape.shape), out_shardings=sharding)
    leaves, tree = jax.tree.flatten(state)
    return jax.tree.unflatten(tree, [draw(jax.random.key(n)) for n in range(len(leaves))])


def main() -> None:
    """Saves in one process and restores in another."""
    from lifecycle.training.checkpoints.checkpointer import Checkpointer
    from lifecycle.training.checkpoints.config import CheckpointConfig

    folder, part = sys.argv[1], sys.argv[4]
    mebibytes, devices = int(sys.argv[2]), int(sys.argv[3])
    checkpoints = Checkpointer(Path(folder), CheckpointConfig())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if part == "save":
        checkpoints.save(1, state_on("fsdp", mebibytes, devices, is_abstract=False), {}, {})
    else:
        import jax

        state = jax.block_until_ready(checkpoints.restore(state_on("tensor", mebibytes, devices, is_abstract=True))[0])
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"state {size:.0f} MiB on {devices} devices; resident {before >> 10} MiB before, peak {peak >> 10} MiB")
    checkpoints.close()


if __name__ == "__main__":
    if len(sys.argv) == 5:
        main()
    else:
        words = [*sys.argv[1:], *("64", "4")[len(sys.argv) - 2 :]]
        flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={words[2]}"}
        for step in ("save", "restore"):
            command = [sys.executable, "-m", "tests.multidevice.measure_restore", *words, step]
            subprocess.run(command, env=os.environ | flags, check=True)
