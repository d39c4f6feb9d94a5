"""Small programs with known work, for the TPU compiler: what the planning room's tests compile or keep compiled.

As a program it writes the golden text: `python -m tests.planning.small_programs` (needs libtpu; seconds).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.topology import mesh_over, parse_topology, prepare

LAYERS, WIDTH, HIDDEN, ROWS, LENGTH = 6, 256, 1024, 4, 128
GOLDEN = Path(__file__).parent / "golden_v5p.hlo"
GOLDEN_TOPOLOGY, GOLDEN_MESH = "v5p:2x2x1", MeshConfig(fsdp=2, tensor=2)
GOLDEN_SHAPE = MeshShape(AXES, (1, 1, 2, 1, 1, 2))


def lower_layers(mesh: Mesh) -> jax.stages.Lowered:
    """A gradient step of feed-forward layers in a scan, rematerialised, weights gathered over `fsdp` and products cut
    over `tensor`, as the train step has them."""

    def body(h: Any, weights: Any) -> tuple[Any, None]:
        up = jax.lax.all_gather(weights[0].astype(jnp.bfloat16), "fsdp", axis=0, tiled=True)
        down = jax.lax.all_gather(weights[1].astype(jnp.bfloat16), "fsdp", axis=1, tiled=True)
        return h + jax.lax.psum(jax.nn.silu(h @ up) @ down, "tensor"), None

    def loss(weights: Any, x: Any) -> Any:
        h, _ = jax.lax.scan(jax.checkpoint(body), x, weights)
        return jnp.sum(h.astype(jnp.float32) ** 2)

    cuts = (P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp"))
    rows = P(("replica", "fsdp"))
    gradients = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=(cuts, rows), out_specs=cuts, check_vma=False)

    def step(weights: Any, x: Any) -> Any:
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients(weights, x))

    shapes = ((LAYERS, WIDTH, HIDDEN), (LAYERS, HIDDEN, WIDTH))
    weights = tuple(_array(shape, "float32", mesh, cut) for shape, cut in zip(shapes, cuts, strict=True))
    return jax.jit(step, donate_argnums=0).lower(weights, _array((ROWS, LENGTH, WIDTH), "bfloat16", mesh, rows))


def layers_flops(mesh: Mesh | MeshShape) -> float:
    """FLOPs per device: two products forward, four backward, and the first one again (the second's result is only
    added, so nobody needs it twice)."""
    sizes = dict(zip(mesh.axes, mesh.sizes, strict=True)) if isinstance(mesh, MeshShape) else dict(mesh.shape)
    tokens = ROWS * LENGTH // (sizes["fsdp"] * sizes["replica"])
    return 7 * LAYERS * 2 * tokens * WIDTH * HIDDEN / sizes["tensor"]


def _array(shape: tuple[int, ...], dtype: str, mesh: Mesh, cut: P) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, cut))


if __name__ == "__main__":
    prepare()
    golden_mesh = mesh_over(parse_topology(GOLDEN_TOPOLOGY), GOLDEN_MESH)
    whole = lower_layers(golden_mesh).compile().as_text()
    assert whole is not None
    head, _, text = whole.partition("\n")
    GOLDEN.write_text(f"{head}\n\n{text[text.index('\n%') + 1 :]}", encoding="utf-8")  # without the table of files
    print(f"{GOLDEN}: {GOLDEN.stat().st_size:,} bytes")
