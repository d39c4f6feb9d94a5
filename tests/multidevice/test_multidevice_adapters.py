"""An adapter's step on eight virtual devices: the loss and the gradients of one device, micro-batches included."""

from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import pytest

from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, with_fresh_adapter
from lifecycle.model.stacks import ADAPTER
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.families import random_params
from lifecycle.testing.tiny_rows import SEQ_LEN, document_rows
from lifecycle.training.batches import RowBatches
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.state import state_from_params, state_shardings
from lifecycle.training.step import make_train_step
from tests.multidevice.meshes import MODELS

CLOSE = 1e-5
WIDE = ModelConfig(  # whole blocks of NF4 on each device
    vocab_size=96, d_model=128, d_ff=128, num_layers=2, num_heads=8, num_kv_heads=4, head_dim=16, max_seq_len=32,
    compute_dtype="float32",
)  # fmt: skip
BASES = MODELS | {"wide": WIDE}
DORA = {"kind": "dora", "scaling": "rslora"}
NF4 = {"kind": "dora", "base": "nf4"}


def case_of(model: str, adapter: dict[str, Any], axes: dict[str, int], *marks: pytest.MarkDecorator) -> Any:
    name = "-".join([model, *adapter.values(), *(f"{axis}{size}" for axis, size in axes.items())])
    return pytest.param(model, adapter, axes, id=name, marks=marks)


CASES = [
    case_of("dense", DORA, {"replica": 2, "fsdp": 2, "tensor": 2}, pytest.mark.slow),
    case_of("wide", NF4, {"replica": 2, "fsdp": 2, "tensor": 2}, pytest.mark.long),
    case_of("projection", {}, {"fsdp": 2, "expert": 2, "context": 2}, pytest.mark.long),
    case_of("latent", DORA, {"stage": 2, "fsdp": 2, "tensor": 2}, pytest.mark.long),
    case_of("experts", {}, {"expert": 2, "context": 2, "tensor": 2}, pytest.mark.long),
]


@cache
def start(model: str, kind: str, scaling: str, base: str | None) -> tuple[ModelConfig, NextTokenConfig, Params]:
    """The model with its adapter, whose `b` is no zero; parameters in host memory."""
    settings = {"rank": 3, "alpha": 5.0, "kind": kind, "scaling": scaling, "base": base}
    train = NextTokenConfig.model_validate(
        {"steps": 1, "seq_len": SEQ_LEN, "global_batch_size": 16, "adapter": settings, "remat": {}}
    )
    adapted = train.trained(BASES[model])
    params = with_fresh_adapter(adapted, random_params(BASES[model]), jax.random.key(1))
    draws = np.random.default_rng(2)
    moved = jax.tree.map(lambda x: x + 0.05 * draws.standard_normal(x.shape).astype(np.float32), params[ADAPTER])
    return adapted, train, jax.device_get(params | {ADAPTER: moved})


def gradient(case: tuple[ModelConfig, NextTokenConfig, Params], axes: dict[str, int], grad_accum: int) -> Any:
    """The loss and the gradients of a step."""
    (model, train, params), mesh = case, build_mesh(MeshConfig(**axes))
    optimizer = optax.trace(decay=0.0)
    shardings = state_shardings(model, optimizer, mesh, train.frozen(model))
    assert shardings.trained.keys() == {ADAPTER}
    state = state_from_params(params, optimizer, shardings)
    step = make_train_step(build_objective(model, train), optimizer, mesh, shardings, grad_accum)
    batches = RowBatches.on_mesh(document_rows(), train.global_batch_size, mesh)
    state, metrics = step(state, shard_batch(batches.batch(0), mesh))
    batches.close()
    return jax.device_get((metrics["loss"], state.opt_state.trace))


@pytest.mark.parametrize(("model", "adapter", "axes"), CASES)
def test_the_gradients_are_those_of_one_device(model: str, adapter: dict[str, Any], axes: dict[str, int]) -> None:
    case = start(model, adapter.get("kind", "lora"), adapter.get("scaling", "standard"), adapter.get("base"))
    whole = 1 if case[0].moe is None else 2  # the balance of the experts is that of a micro-batch
    (loss, grads), (exact_loss, exact) = gradient(case, axes, 2), gradient(case, {}, whole)
    np.testing.assert_allclose(loss, exact_loss, rtol=CLOSE)
    for found, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=1e-4)
        assert np.abs(expected).max() > 1e-4
