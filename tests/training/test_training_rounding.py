"""Parameters in bfloat16: rounding is unbiased, depends on no mesh, and a run keeps its dtypes and its bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.progress import Silent
from lifecycle.model.params import abstract_params, parameters
from lifecycle.testing.jobs import StopAt, TinyRun, tiny_job
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.checkpoints.integrity import CheckpointError
from lifecycle.training.checkpoints.weights import hash_params, load_params
from lifecycle.training.job import CHECKPOINTS, TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.optimizer_config import OptimizerConfig
from lifecycle.training.rounding import holding, round_stochastically, rounded_like

BFLOAT16 = ml_dtypes.bfloat16


def neighbours(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bfloat16 numbers at both sides of float32 numbers, by NumPy's rounding to nearest; equal where exact."""
    near = x.astype(BFLOAT16)
    up, down = (np.nextafter(near, np.asarray(end, BFLOAT16)) for end in (np.inf, -np.inf))
    wide = near.astype(np.float32)
    return np.where(wide <= x, near, down).astype(np.float64), np.where(wide >= x, near, up).astype(np.float64)


def test_rounding_is_unbiased() -> None:
    """Each value's mean over 4,096 roundings is within 5 standard errors of it."""
    draw = np.random.default_rng(0)
    x = (draw.normal(size=200) * 10.0 ** draw.uniform(-6, 6, 200)).astype(np.float32)
    noise = draw.integers(0, 2**16, (4096, 200), dtype=np.uint16)
    found = np.asarray(jax.vmap(round_stochastically, (None, 0))(jnp.asarray(x), noise)).astype(np.float64)
    low, high = neighbours(x)
    assert ((found == low) | (found == high)).all() and (low < high).all()
    share = (x - low) / (high - low)
    error = np.abs(found.mean(0) - x) / (high - low)
    assert (error < 5 * np.sqrt(share * (1 - share) / 4096) + 2**-16).all()
    assert error.mean() < 0.01 < np.abs(x.astype(BFLOAT16).astype(np.float64) - x).mean() / (high - low).mean()


@settings(max_examples=50, deadline=None)
@given(st.floats(width=32, allow_subnormal=False), st.integers(0, 2**16 - 1))
def test_any_value_goes_to_a_neighbour(value: float, noise: int) -> None:
    x = np.array([value], np.float32)
    found = np.asarray(round_stochastically(jnp.asarray(x), np.array([noise], np.uint16))).astype(np.float64)
    if not np.isfinite(x).all():
        assert np.array_equal(found, x.astype(np.float64), equal_nan=True)
    else:
        assert found in neighbours(x)


def test_steps_and_parameters_get_bits_of_their_own() -> None:
    wide = {"a": jnp.full((4, 64), 1.003), "b": jnp.full((4, 64), 1.003), "scale": jnp.full(4, 1.003)}
    held = {**{name: wide[name].astype(jnp.bfloat16) for name in ("a", "b")}, "scale": wide["scale"]}
    first, again, later = (rounded_like(held, wide, jnp.int32(step)) for step in (7, 7, 8))
    assert np.array_equal(first["a"], again["a"]) and np.array_equal(first["scale"], wide["scale"])
    assert not np.array_equal(first["a"], first["b"]) and not np.array_equal(first["a"], later["a"])


def bfloat16_job(out: Path) -> TrainJob:
    job = tiny_job(out, TinyRun(steps=6, checkpoint_every=3, grad_accum=1))
    optimizer = job.train.optimizer.model_copy(update={"param_dtype": "bfloat16"})
    return replace(job, train=job.train.model_copy(update={"optimizer": optimizer}))


@pytest.mark.long
def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = run_job(bfloat16_job(tmp_path / "whole"), Silent())
    with pytest.raises(KeyboardInterrupt):
        run_job(bfloat16_job(tmp_path / "stopped"), StopAt(4))
    assert run_job(bfloat16_job(tmp_path / "stopped"), Silent())["params_hash"] == whole["params_hash"]


@pytest.mark.slow
def test_a_run_saves_bfloat16_and_later_stages_read_it(tmp_path: Path) -> None:
    whole = run_job(bfloat16_job(tmp_path), Silent())
    folder, wide = tmp_path / CHECKPOINTS, abstract_params(MODEL)
    hold = holding(OptimizerConfig(param_dtype="bfloat16"), MODEL)
    held: Any = jax.eval_shape(hold, wide)
    assert (
        OptimizerConfig(param_dtype="bfloat16").bytes_per_parameter == OptimizerConfig().bytes_per_parameter - 2 == 10
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(held)} == {"bfloat16", "float32"}
    for declared, leaf in zip(jax.tree.leaves(parameters(MODEL)), jax.tree.leaves(held), strict=True):
        assert declared.is_float32 == (leaf.dtype == jnp.float32)
    read = load_params(folder, wide)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(read)} == {"float32"}
    assert hash_params(hold(read)) == whole["params_hash"], "reading them in float32 changes nothing"
    with pytest.raises(CheckpointError, match=r"is .* bfloat16, in this run .* float32"):
        run_job(tiny_job(tmp_path, TinyRun(steps=7, grad_accum=1)), Silent())
