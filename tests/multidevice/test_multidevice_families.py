"""Loss and every gradient of the families' tiny models on eight devices equal one device's.

The weights are the golden ones; rows are packed. Four families hold between them everything that a layer may have.

Every element of a gradient agrees to 1e-5 of its array's Euclidean norm (of 0.1 where that is smaller). Not to 1e-5 of
its own size, and not to 1e-5 as such: the golden products grow what they multiply, and float32 does not determine more.
Half a unit in the last place of every weight, up or down at random, moves an element of the embedding's gradient on
one device by 0.9e-5 to 2.0e-5 (DeepSeek; norm 5.3), 0.4e-5 to 0.8e-5 (gpt-oss), 0.4e-5 (Gemma 3), 0.07e-5 (OLMo 2).
The largest that a mesh differs by is 0.8e-5, 0.4e-5, 0.2e-5 and 0.05e-5.
"""

from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lifecycle.core.typing import Array, Batch
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, logical_axes
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.parallel.placement import on_mesh, shard_batch, sum_gradients, sum_over_mesh
from lifecycle.testing.jobs import objective_of
from lifecycle.training.state import param_specs
from lifecycle.weights.published import load_config, load_weights
from tests.golden.family_weights import write_model

GOLDEN = Path(__file__).parents[1] / "golden/families"
CLOSE = 1e-5
SPLIT = 10  # row 0 is two documents, row 1 is one and padding
FAMILIES = ["gemma3_text", "olmo2", "gpt_oss", "deepseek_v3"]
MESHES = {
    "one": MeshConfig(),
    "expert x context x tensor": MeshConfig(expert=2, context=2, tensor=2),
    "fsdp x context x tensor": MeshConfig(fsdp=2, context=2, tensor=2),
    "replica x fsdp x tensor": MeshConfig(replica=2, fsdp=2, tensor=2),
}
CASES = list(product(FAMILIES, list(MESHES)[1:]))

# `test_multidevice_axes.py` has these families' features on meshes by default.
pytestmark = pytest.mark.matrix


def batch_of(family: str) -> dict[str, np.ndarray]:
    tokens = np.tile(np.load(GOLDEN / family / "expected.npz")["tokens"], (2, 1))
    place = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    is_second = (place >= SPLIT) & (np.arange(len(tokens))[:, None] % 2 == 0)
    is_padding = (place >= tokens.shape[1] - 4) & (np.arange(len(tokens))[:, None] % 2 == 1)
    segments = np.where(is_padding, 0, 1 + is_second)
    ends = np.diff(segments, axis=1, append=-1) != 0
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": (place - SPLIT * is_second).astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "loss_mask": (~ends & ~is_padding).astype(np.float32),
    }


@cache
def model_of(family: str) -> tuple[ModelConfig, Params]:
    with TemporaryDirectory() as name:
        write_model(GOLDEN / family, Path(name))
        config = load_config(Path(name)).model_copy(update={"compute_dtype": "float32"})
        params = load_weights(config, Path(name))
    return config, params


@cache
def loss_and_gradients(family: str, mesh_name: str) -> tuple[Array, Params]:
    """The mean loss and its gradients, computed on a mesh."""
    config, params = model_of(family)
    mesh, specs = build_mesh(MESHES[mesh_name]), param_specs(config)

    def local(params: Params, part: Batch) -> tuple[Array, Params]:
        def loss(params: Params) -> tuple[Array, Array]:
            sums = objective_of("next_token", config)(params, part)
            return sums.loss, sums.count

        (total, count), grads = jax.value_and_grad(loss, has_aux=True)(params)
        total, count = sum_over_mesh((total, count), mesh)
        return total / count, jax.tree.map(lambda g: g / count, sum_gradients(grads, mesh, specs))

    run = jax.jit(on_mesh(local, mesh, specs, (P(), specs)))
    batch = shard_batch(batch_of(family), mesh)
    return run(jax.device_put(params, tree_shardings(mesh, logical_axes(config))), batch)


@pytest.mark.parametrize(("family", "mesh"), CASES)
def test_a_mesh_has_one_devices_loss_and_gradients(family: str, mesh: str) -> None:
    one, exact = loss_and_gradients(family, "one")
    loss, found = loss_and_gradients(family, mesh)
    np.testing.assert_allclose(loss, one, atol=CLOSE, rtol=0)
    for (path, grad), wanted in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(exact), strict=True):
        scale, name = max(0.1, float(np.linalg.norm(wanted))), jax.tree_util.keystr(path)
        np.testing.assert_allclose(grad, wanted, atol=CLOSE * scale, rtol=0, err_msg=name)
        assert np.abs(wanted).max() > 1e-4 or "selection_bias" in name  # a gradient that says something
