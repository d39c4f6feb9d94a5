"""Measures what each host fetches of a checkpoint, where hosts share no folder: `python -m
tests.multidevice.measure_apart FOLDER [MEBIBYTES] [HOSTS]`.

So many processes save parameters of so many mebibytes and two moments of each, sharded over them (`fsdp`), with norms'
scales, to a store in a folder; on empty disks they restore them on the same mesh, on another (`tensor`), and with a
second replica of the first half's shards. Prints the size of the checkpoint, and of what each process downloads.
"""

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

LAYERS, WIDTH = 8, 1024
MESHES = ("fsdp", "tensor", "replica")


def state_on(axis: str, mebibytes: int, hosts: int, is_abstract: bool) -> dict[str, Any]:
    """Parameters in stacks of 8 layers, with two moments; the norms' scales are sharded like them, or not at all."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from lifecycle.parallel.axes import MeshConfig
    from lifecycle.parallel.mesh import build_mesh

    sizes = {"replica": 2, "fsdp": hosts // 2} if axis == "replica" else {axis: hosts}
    mesh, sharded = build_mesh(MeshConfig(**sizes)), "tensor" if axis == "tensor" else "fsdp"
    spec = P(None, None, "tensor") if axis == "tensor" else P(None, sharded)
    stacks = mebibytes * 2**20 // (4 * LAYERS * WIDTH**2)
    weight = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, spec))
    scale = jax.ShapeDtypeStruct((LAYERS, WIDTH), jnp.float32, sharding=NamedSharding(mesh, P()))
    blocks = {f"w{n}": weight for n in range(stacks)} | {"norm": scale}
    params = {"blocks": {"0+1": blocks}}
    state = {"params": params, "opt_state": {"mu": params, "nu": params}}
    if is_abstract:
        return state
    leaves, tree = jax.tree.flatten(state)
    drawn = [
        jax.jit(lambda key, leaf=leaf: jax.random.normal(key, leaf.shape), out_shardings=leaf.sharding)(
            jax.random.key(n)
        )
        for n, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, drawn)


def main(folder: Path, mebibytes: int, hosts: int, part: str) -> None:
    """One process's part of saving, or of restoring on a mesh."""
    from obstore.store import LocalStore

    from lifecycle.core import distributed

    distributed.start()
    import jax

    from lifecycle.core.shared_folder import look_for_shared
    from lifecycle.core.store import Store
    from lifecycle.training.checkpoints.checkpointer import Checkpointer
    from lifecycle.training.checkpoints.config import CheckpointConfig
    from lifecycle.training.checkpoints.destination import Destination

    class Counting(Store):
        fetched: ClassVar[list[int]] = []

        def download(self, name: str, file: Path) -> str:
            found = super().download(name, file)
            self.fetched.append(file.stat().st_size)
            return found

    own = folder / part / str(jax.process_index()) / "checkpoints"
    look_for_shared(own)
    (folder / "store").mkdir(parents=True, exist_ok=True)
    store = Counting("file://store", LocalStore(str(folder / "store")))
    checkpoints = Checkpointer(own, CheckpointConfig(), None, Destination(store, lambda: None))
    if part == "save":
        checkpoints.save(1, state_on("fsdp", mebibytes, hosts, is_abstract=False), {}, {})
        checkpoints.wait()
    else:
        wanted = state_on(part, mebibytes, hosts, is_abstract=True)
        jax.block_until_ready(checkpoints.restore(wanted)[0])
        whole = sum(found.bytes for found in store.list().values())
        print(f"{part} {jax.process_index()}: {sum(Counting.fetched) / 2**20:.1f} MiB of {whole / 2**20:.1f}")
    checkpoints.close()


if __name__ == "__main__":
    if len(sys.argv) == 5:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        from tests.multidevice.test_two_processes import run_processes

        os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
        words = [*sys.argv[1:], *("64", "4")[len(sys.argv) - 2 :]]
        for step in ("save", *MESHES):
            command = [sys.executable, "-m", "tests.multidevice.measure_apart", *words, step]
            print("".join(run_processes(command, int(words[2]), devices=1)), end="")
