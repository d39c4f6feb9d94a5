"""A layer's cache by the TPU compiler: what is written and what the kernel reads has one layout, so nothing is copied.

XLA's scatter and a Pallas kernel choose layouts of their own. Where they differ, each layer copies the whole cache, and
a step of an 8B takes seconds instead of milliseconds; nothing but the compiled program shows it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array
from lifecycle.kernels.page_store import Entry, PageStore
from lifecycle.kernels.paged import paged_attention
from lifecycle.kernels.paged_rows import Rows
from lifecycle.model.cache import init_pages, with_copies
from lifecycle.planning.compilers import TPU_COMPILER
from lifecycle.planning.topology import devices, parse_topology, prepare
from lifecycle.testing.models import random_model

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(not TPU_COMPILER.is_installed, reason="libtpu is not installed"),
]
LAYERS, PAGES, PAGE, PER_ROW, PER_GROUP = 2, 512, 128, 4, 4


def step(q: Array, new: Array, store: PageStore, table: Array, positions: Array) -> tuple[Array, PageStore]:
    """Layers that write their tokens and attend."""
    rows = Rows.of(positions, table, PER_ROW * PAGE, PAGE)

    def layer(carry: tuple[Array, PageStore], number: Array) -> tuple[tuple[Array, PageStore], None]:
        new, store = carry
        store = store.written(number, rows, new)
        out = paged_attention(q, store, number, rows)
        return (new + out.sum(), store), None

    (out, store), _ = jax.lax.scan(layer, (new, store), jnp.arange(LAYERS))
    return out, store


@pytest.mark.parametrize(
    ("dtype", "heads", "batch", "length", "is_latent"),
    [
        pytest.param("int8", 2, 1, 256, False, id="chunk"),
        pytest.param("int8", 2, 16, 1, False, id="tokens"),
        pytest.param("int8", 1, 1, 256, False, id="one head", marks=pytest.mark.slow),
        pytest.param("int8", 1, 16, 1, True, id="latents", marks=pytest.mark.slow),
        pytest.param("float8_e4m3fn", 1, 1, 256, False, id="fp8", marks=pytest.mark.slow),
        pytest.param("bfloat16", 2, 1, 256, False, id="bfloat16", marks=pytest.mark.slow),
    ],
)
def test_the_cache_is_not_copied(dtype: str, heads: int, batch: int, length: int, is_latent: bool) -> None:
    prepare()
    mesh = Mesh(np.array(devices(parse_topology("v5e:1x1"))[:1]), ("x",))
    here = NamedSharding(mesh, P())

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        entry = Entry.latent(512, 128) if is_latent else Entry.key_value(128, 128)
        store = jax.eval_shape(lambda: PageStore.empty((LAYERS, PAGES, heads, PAGE), entry, dtype))
        q = jax.ShapeDtypeStruct((batch, length, PER_GROUP * heads, sum(entry.parts[: entry.num_keys])), jnp.bfloat16)
        new = jax.ShapeDtypeStruct((batch, length, heads, entry.width), jnp.bfloat16)
        tables = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch, PER_ROW), (batch, length)))
        compiled = jax.jit(step, donate_argnums=2).trace(*shapes((q, new, store, *tables))).lower().compile()
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 0.1 * store.values.size


@pytest.mark.slow
def test_copies_of_a_prompts_last_pages_copy_nothing_else() -> None:
    prepare()
    here = NamedSharding(Mesh(np.array(devices(parse_topology("v5e:1x1"))[:1]), ("x",)), P())
    model = random_model(num_layers=LAYERS, num_kv_heads=2, head_dim=128).config
    cache = jax.eval_shape(lambda: init_pages(model, {"full": PAGES}, PER_ROW * PAGE, "bfloat16", is_apart=True))
    table = {"full": jax.ShapeDtypeStruct((8, 2), jnp.int32)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), (cache, table, table))
    compiled = jax.jit(partial(with_copies, model), donate_argnums=0).trace(*shapes).lower().compile()
    memory = compiled.memory_analysis()
    assert memory is not None and memory.alias_size_in_bytes >= LAYERS * PAGES * PAGE * 2 * 2 * 128 * 2
    assert memory.temp_size_in_bytes < 0.1 * memory.alias_size_in_bytes
