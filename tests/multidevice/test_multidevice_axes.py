"""Every mesh axis, alone and together, gives one device's loss and gradients: dense models and mixtures of experts."""

from functools import cache, partial
from typing import Any

import jax
import numpy as np
import optax
import pytest

from lifecycle.model.config import MlaConfig, ModelConfig, MoeConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import place_batch
from lifecycle.testing.jobs import Settings, objective_of, rows_of
from lifecycle.training.batches import one_epoch
from lifecycle.training.state import init_state, state_shardings
from lifecycle.training.step import make_train_step

CLOSE = 1e-5
# Every count that an axis cuts is a multiple of eight, so that each axis alone can have all devices.
DENSE = ModelConfig(
    vocab_size=96, d_model=32, d_ff=64, num_layers=3, num_heads=8, num_kv_heads=8, head_dim=8, max_seq_len=32,
    layer_pattern=("local", "global"), window=9, qk_norm="head", compute_dtype="float32", tie_embeddings=True,
)  # fmt: skip
PROJECTION = DENSE.model_copy(
    update={"qk_norm": "projection", "attention_bias": "qkvo", "use_sinks": True, "logits_soft_cap": 3.0,
            "norm_position": "sandwich", "tie_embeddings": False, "use_embed_scale": True}
)  # fmt: skip
EXPERTS = MoeConfig(
    num_experts=8, experts_per_token=2, d_ff=16, num_shared_experts=1, first_dense_layers=1, score="sigmoid",
    use_selection_bias=True, bias_rate=1e-3, balance_weight=0.01, z_weight=0.001,
)  # fmt: skip
MOE = DENSE.model_copy(update={"moe": EXPERTS, "layer_pattern": ("global",), "window": None})
LATENT = MOE.model_copy(
    update={"qk_norm": "none", "mla": MlaConfig(q_lora_rank=16, kv_lora_rank=16, nope_head_dim=8, rope_head_dim=4,
            v_head_dim=8), "head_dim": 12}
)  # fmt: skip
MODELS = {"dense": DENSE, "projection": PROJECTION, "experts": MOE, "latent": LATENT}
RINGS = {
    f"{name} ring": MODELS[name].model_copy(update={"context_attention": "ring"}) for name in ("dense", "projection")
}
ALONE = [{axis: 8} for axis in ("replica", "fsdp", "expert", "tensor")] + [{"context": 4}]
TOGETHER = [
    {"fsdp": 4, "tensor": 2},
    {"fsdp": 2, "context": 4},
    {"expert": 4, "fsdp": 2},
    {"replica": 2, "fsdp": 2, "tensor": 2},
    {"expert": 2, "context": 2, "tensor": 2},
]
# A pipeline's stages hold whole periods of layers that are alike.
EVEN_EXPERTS = {"num_layers": 4, "moe": EXPERTS.model_copy(update={"first_dense_layers": 0})}
EVEN = {
    "dense": DENSE.model_copy(update={"num_layers": 4}),
    "experts": MOE.model_copy(update=EVEN_EXPERTS),
    "projection": PROJECTION.model_copy(update={"num_layers": 4}),
    "latent": LATENT.model_copy(update=EVEN_EXPERTS),
    "dense ring": DENSE.model_copy(update={"num_layers": 4, "context_attention": "ring"}),
}
STAGES = [{"stage": 2}, {"stage": 2, "fsdp": 4}, {"stage": 2, "expert": 2, "tensor": 2}]
STAGES_TOGETHER = [
    {"stage": 2, "context": 4},
    {"replica": 2, "stage": 2, "fsdp": 2},
    {"replica": 2, "stage": 2, "context": 2},
    {"stage": 2, "fsdp": 2, "expert": 2},
    {"stage": 2, "fsdp": 2, "context": 2},
]
STAGES_ONCE = [
    ("experts", {"stage": 4, "tensor": 2}),
    ("projection", {"stage": 2, "fsdp": 2, "context": 2}),
    ("latent", {"stage": 2, "fsdp": 2, "context": 2}),
    ("dense ring", {"stage": 2, "context": 4}),
]
# Gradients as they come: the update is their negative, and what the state keeps is they.
GRADIENT = optax.chain(optax.trace(decay=0.0), optax.scale(-1.0))


@cache
def first_step(
    name: str, is_even: bool = False, objective: str = "next_token", loss_chunks: int = 1, **axes: int
) -> tuple[dict[str, float], Any, Any]:
    """(metrics, gradients, parameters after it) of one step with two micro-batches of packed rows."""
    config, mesh = (EVEN if is_even else MODELS | RINGS)[name], build_mesh(MeshConfig(**axes))
    shardings = state_shardings(config, GRADIENT, mesh)
    state = init_state(config, GRADIENT, shardings, jax.random.key(0))
    settings: dict[str, Any] = {"remat": {}} | ({"loss_chunks": loss_chunks} if objective == "next_token" else {})
    summed = objective_of(objective, config, **settings)
    step = make_train_step(summed, GRADIENT, mesh, shardings, 2, config.bias_rate)
    host = next(one_epoch(rows_of(Settings(objective=objective)), global_batch_size=16))
    state, metrics = step(state, place_batch(host, mesh))
    metrics = {key: float(value) for key, value in metrics.items()}
    return metrics, jax.device_get(state.opt_state[0].trace), jax.device_get(state.params)


@pytest.mark.parametrize("model", ["dense", "projection"])
def test_a_ring_gives_the_loss_and_gradients_of_one_device(model: str) -> None:
    """Windows, segments, sinks and rematerialisation, keys and values travelling round the context axis."""
    assert_equal(first_step(f"{model} ring", fsdp=2, context=4), first_step(model))


@pytest.mark.parametrize(
    ("model", "axes"), [("dense", {"replica": 2, "fsdp": 2, "context": 2}), ("projection", {"fsdp": 4, "tensor": 2})]
)
def test_chunks_of_the_vocabulary_give_the_loss_and_gradients_of_one_device(model: str, axes: dict[str, int]) -> None:
    """Of a head that is the embedding, and of one of its own under a soft cap, gathered chunk by chunk."""
    assert_equal(first_step(model, loss_chunks=4, **axes), first_step(model))


def name_of(axes: dict[str, int]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in axes.items())


def cases() -> list[Any]:
    """Experts on every mesh that cuts something, dense layers on the combinations; the rest, five seconds each, among
    the slow tests."""
    found = []
    for model in MODELS:
        for axes in ALONE + TOGETHER:
            is_quick = axes in TOGETHER if model == "dense" else model == "experts" and axes != {"replica": 8}
            marks = () if is_quick else pytest.mark.slow
            found.append(pytest.param(model, axes, id=f"{model}-{name_of(axes)}", marks=marks))
    return found


@pytest.mark.parametrize(("model", "axes"), cases())
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(model: str, axes: dict[str, int]) -> None:
    assert_equal(first_step(model, **axes), first_step(model))


def pipelines() -> list[Any]:
    """Dense layers and experts on every mesh with stages, the other models once; three meshes by default."""
    both = [(model, axes) for model in ("dense", "experts") for axes in STAGES + STAGES_TOGETHER]
    return [
        pytest.param(model, axes, id=f"{model}-{name_of(axes)}", marks=() if axes in STAGES else pytest.mark.slow)
        for model, axes in both + STAGES_ONCE
    ]


@pytest.mark.parametrize(("model", "axes"), pipelines())
def test_a_pipeline_gives_the_loss_and_gradients_of_one_device(model: str, axes: dict[str, int]) -> None:
    assert_equal(first_step(model, is_even=True, **axes), first_step(model, is_even=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "axes"), [("dense", {"stage": 2, "fsdp": 2, "context": 2}), ("experts", {"replica": 2, "stage": 2})]
)
def test_preferences_on_a_pipeline_are_those_of_one_device(model: str, axes: dict[str, int]) -> None:
    step = partial(first_step, model, is_even=True, objective="dpo")
    assert_equal(step(**axes), step())


def assert_equal(step: tuple[Any, ...], on_one_device: tuple[Any, ...]) -> None:
    metrics, grads, params = step
    expected, exact, updated = on_one_device
    assert metrics == pytest.approx(expected, rel=CLOSE, abs=CLOSE)
    largest = 0.0
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        own = dict(jax.tree_util.tree_leaves_with_path(exact))[path]
        np.testing.assert_allclose(grad, own, atol=CLOSE, rtol=0, err_msg=jax.tree_util.keystr(path))
        largest = max(largest, np.abs(own).max())
    assert largest > 1e-2
    for found, own in zip(jax.tree.leaves(params), jax.tree.leaves(updated), strict=True):
        np.testing.assert_allclose(found, own, atol=CLOSE, rtol=0)
