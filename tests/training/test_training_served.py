"""Quantisation-aware training: what a step computes with, what it moves, what is measured, and what it is good for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lifecycle.core.progress import Silent
from lifecycle.model.config import DrafterConfig, WeightFormat
from lifecycle.model.params import Params, abstract_params
from lifecycle.model.weight_formats import as_served
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import StopAt, TinyRun, objective_of, tiny_job
from lifecycle.testing.tiny_rows import MODEL, document_rows
from lifecycle.training.batches import one_epoch
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.served import served_by
from lifecycle.training.state import state_from_params, state_shardings
from lifecycle.training.step import make_train_step

MESH = build_mesh(MeshConfig())

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


def job(out: Path, weights: WeightFormat | None, settings: TinyRun) -> TrainJob:
    """The tiny run, for a format."""
    tiny = tiny_job(out, settings)
    return replace(tiny, train=tiny.train.model_copy(update={"weights": weights}))


@pytest.mark.long
def test_a_step_moves_the_plain_weights_by_the_gradient_in_the_rounded_ones() -> None:
    """In two micro-batches, with frozen weights, which are rounded too and stay as they are."""
    params = random_params(MODEL)
    batch: Any = next(one_epoch(document_rows(), global_batch_size=8))
    descent, objective = optax.sgd(1.0), objective_of("next_token")
    state = state_from_params(params, descent, state_shardings(MODEL, descent, MESH, ("embed",)))
    served = served_by(MODEL, TinyRun().train().model_copy(update={"weights": "int4"}), MESH)
    shardings = state_shardings(MODEL, descent, MESH, ("embed",))
    step: Any = make_train_step(objective, descent, MESH, shardings, 2, served=served)
    state, metrics = step(state, batch)
    rounded, count = as_served(MODEL, params, "int4"), float(metrics["count"])
    loss, grads = jax.jit(jax.value_and_grad(lambda params: objective(params, batch).loss))(rounded)
    assert metrics["loss"] == pytest.approx(float(loss) / count, rel=1e-5)
    expected = jax.tree.map(lambda w, g: w - g / count, params, grads) | {"embed": params["embed"]}
    chex.assert_trees_all_close(state.params, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(rounded["embed"] - params["embed"]).max() > 0


def test_what_inference_does_not_round_is_not_rounded() -> None:
    params = random_params(MODEL)
    rounded = as_served(MODEL, params, "int4")
    (before,), (after,) = params["blocks"].values(), rounded["blocks"].values()
    assert np.array_equal(before["attention_norm"]["scale"], after["attention_norm"]["scale"])
    groups = np.asarray(after["attention"]["q"]).reshape(MODEL.num_layers, 1, 32, -1)
    levels = np.array([len(np.unique(column)) for column in groups.swapaxes(-1, -2).reshape(-1, 32)])
    assert levels.max() <= 16 and levels.min() > 4
    drafted = MODEL.model_copy(update={"drafter": DrafterConfig()})
    both = random_params(drafted)
    assert as_served(drafted, both, "int8")["drafter"] is both["drafter"]


def test_parameters_in_bfloat16_stay_so_where_products_have_it() -> None:
    narrow = MODEL.model_copy(update={"compute_dtype": "bfloat16"})
    held = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(MODEL))
    for config, dtype in ((narrow, "bfloat16"), (MODEL, "float32")):
        assert as_served(config, held, "int4")["embed"].dtype == dtype


@pytest.mark.long
def test_a_run_measures_what_is_served_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """The average of the weights is what is measured; checkpoints have it as it is."""
    settings = TinyRun(steps=4, checkpoint_every=2, average_decay=0.5)
    seen: list[Params] = []
    measuring = Evaluate(2, lambda params: seen.append(jax.device_get(params)) or {})
    whole = run_job(job(tmp_path / "whole", "int4", settings), Silent(), [measuring])
    kept = load_params(tmp_path / "whole" / CHECKPOINTS, abstract_params(MODEL))
    chex.assert_trees_all_equal(seen[-1], jax.device_get(as_served(MODEL, kept, "int4")))
    assert np.abs(seen[-1]["embed"] - kept["embed"]).max() > 0
    with pytest.raises(KeyboardInterrupt):
        run_job(job(tmp_path / "stopped", "int4", settings), StopAt(3))
    again = run_job(job(tmp_path / "stopped", "int4", settings), Silent())
    assert again["params_hash"] == whole["params_hash"]
    assert whole["params_hash"] != run_job(job(tmp_path / "plain", None, settings), Silent())["params_hash"]
