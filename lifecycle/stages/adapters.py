"""A training stage's adapter: its first values, its merged weights, and its files.

A stage's checkpoints have the weights that stay as they are once, as they are held, and each step's adapter. What the
stage has learned is the sum: later stages start from it unless they go on with the adapter itself, evaluations measure
it, and the bundle has it.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from lifecycle.core.artifact import Artifact
from lifecycle.kernels.nf4 import Nf4Weight, dense
from lifecycle.model.adapters import LowRank
from lifecycle.model.config import ModelConfig
from lifecycle.model.lora import CODES, merged
from lifecycle.model.params import (
    Params,
    abstract_params,
    beside_adapter,
    logical_axes,
    with_fresh_adapter,
    without_adapter,
)
from lifecycle.model.stacks import ADAPTER, SCORE
from lifecycle.parallel.mesh import tree_shardings
from lifecycle.stages.config import RunConfig
from lifecycle.training.adapter import PREVIOUS
from lifecycle.training.checkpoints.weights import read_params
from lifecycle.training.job import CHECKPOINTS
from lifecycle.weights.arrays import declarations
from lifecycle.weights.trained_adapters import read_trained, save_trained, tree_of

FOLDER = "adapter"  # in a bundle

type Read = Callable[[str, int | None], np.ndarray]  # an array by canonical name, or one expert's part of it


def start_with_adapter(config: RunConfig, name: str, start: Params, mesh: Mesh) -> Params:
    """The initial parameters of a stage with an adapter, sharded over `mesh`, from the weights that it starts from or,
    where the adapter goes on, those with it. A score among them stays as it is: it is trained whole, in float32."""
    if SCORE in start:
        base = {part: array for part, array in start.items() if part != SCORE}
        return start_with_adapter(config, name, base, mesh) | {SCORE: start[SCORE]}
    model, settings = config.trained_model(name).model_copy(update={"has_score": False}), config.train[name].adapter
    assert settings is not None
    places = tree_shardings(mesh, logical_axes(model))
    if ADAPTER in start:
        return jax.jit(partial(beside_adapter, model), out_shardings=places)(start)
    made = jax.jit(partial(with_fresh_adapter, model), out_shardings=places)(start, jax.random.key(config.seed))
    if settings.folder is None:
        return made
    matrices = tree_of(model, read_trained(model, Path(settings.folder)))

    def put(array: np.ndarray, place: Sharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, place, array.__getitem__)

    return made | {ADAPTER: jax.tree.map(put, matrices, places[ADAPTER])}


def merged_params(model: ModelConfig, params: Params, mesh: Mesh | None) -> Params:
    """The parameters of `model.target`, and a score among them, with what the adapter has learned, in float32, sharded
    over `mesh` or where they are; unchanged without an adapter."""
    if model.adapter is None:
        return params
    plain = model.target.model_copy(update={"has_score": SCORE in params})
    places = None if mesh is None else tree_shardings(mesh, logical_axes(plain))
    return jax.jit(partial(without_adapter, model), out_shardings=places)(params)


def merged_reader(model: ModelConfig, read: Read) -> Read:
    """A reader of `model.target`'s arrays with what the adapter has learned, from one of a checkpoint's arrays."""
    if model.adapter is None:
        return read
    known, scale = declarations(model), model.adapter.scale

    def whole(name: str, expert: int | None) -> np.ndarray:
        def array(part: str) -> Any:
            return jnp.asarray(read(part, expert))

        if f"{name}.{CODES}" in known:
            base = dense(Nf4Weight(*(array(f"{name}.{part.name}") for part in fields(Nf4Weight))))
        else:
            base = array(name)
        beside = (f"{ADAPTER}.{name}.{part}" for part in ("a", "b", "magnitude"))
        a, b, magnitude = (array(part) if part in known else None for part in beside)
        if a is None or b is None:
            return np.asarray(base, np.float32)
        return np.asarray(merged(base, a, b * scale, magnitude))

    return whole


def write_adapter(model: ModelConfig, trained: Artifact, out: Path, base_model: str) -> None:
    """Writes the adapter of a training stage's artifact into the folder `out`, as PEFT reads it."""
    read = read_params(trained.path / CHECKPOINTS, abstract_params(model), trained.stats["steps"])
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in declarations(model):
        if name.startswith(f"{ADAPTER}."):
            matrix, _, part = name.removeprefix(f"{ADAPTER}.").rpartition(".")
            found.setdefault(matrix, {})[part] = read(name, None)
    save_trained(model, {name: LowRank(**parts) for name, parts in found.items()}, out, base_model)  # pyrefly: ignore[bad-argument-type] - on host


def base_of(config: RunConfig, stage: str) -> str:
    """What the adapter of a stage is beside: a bundle's path, or the name of the stage whose weights it starts from."""
    start = config.starts[stage]
    if (adapter := config.train[stage].adapter) is not None and adapter.start == PREVIOUS and start.stage is not None:
        return base_of(config, start.stage)
    return str(start.url or start.bundle or start.stage)
