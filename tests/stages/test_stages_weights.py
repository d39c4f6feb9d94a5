"""What the training stages hand to the next: the last step's weights or an error."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import pytest

from lifecycle.core.artifact import Artifact
from lifecycle.model.params import abstract_in_use, abstract_params, params_in_use
from lifecycle.model.weight_formats import as_served
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.weights import trained_params, trained_params_in_use
from lifecycle.testing.families import random_params
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.integrity import FILES, CheckpointError
from lifecycle.training.job import CHECKPOINTS


@dataclass
class Trained:
    path: Path
    stats: dict[str, Any] = field(default_factory=lambda: {"steps": 2})


def test_a_damaged_last_checkpoint_is_not_replaced_by_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path / CHECKPOINTS, CheckpointConfig(every=1, keep=2))
    shapes = abstract_params(MODEL)
    for step in (1, 2):
        params = jax.tree.map(lambda x, value=step: jnp.full(x.shape, value, x.dtype), shapes)
        state = {"params": params, "opt_state": {"count": jnp.array(step)}}
        checkpoints.save(step, state, {"step": step}, {"step": step})
    checkpoints.close()
    artifact = cast(Artifact, Trained(tmp_path))
    assert all((leaf == 2).all() for leaf in jax.tree.leaves(trained_params(artifact, MODEL)))
    (tmp_path / CHECKPOINTS / "2" / FILES).write_text("{")
    with pytest.raises(CheckpointError, match="not a list of files"):
        trained_params(artifact, MODEL)


@pytest.mark.parametrize("mesh", [None, MeshConfig(fsdp=2)])
def test_weights_in_use_are_read_into_their_dtypes(tmp_path: Path, mesh: MeshConfig | None) -> None:
    narrow = MODEL.model_copy(update={"compute_dtype": "bfloat16"})
    params = random_params(narrow)
    checkpoints = Checkpointer(tmp_path / CHECKPOINTS, CheckpointConfig(every=1, keep=1))
    checkpoints.save(2, {"params": params, "opt_state": {"count": jnp.array(2)}}, {"step": 2}, {})
    checkpoints.close()
    artifact, laid = cast(Artifact, Trained(tmp_path)), None if mesh is None else build_mesh(mesh)
    held = trained_params_in_use(artifact, narrow, laid)
    assert jax.tree.map(lambda x: x.dtype, held) == jax.tree.map(lambda x: x.dtype, abstract_in_use(narrow))
    assert {x.dtype.name for x in jax.tree.leaves(held)} == {"bfloat16", "float32"}
    chex.assert_trees_all_equal(held, params_in_use(narrow, params), strict=True)
    rounded = trained_params_in_use(artifact, narrow, laid, "int8")
    chex.assert_trees_all_equal(rounded, params_in_use(narrow, as_served(narrow, params, "int8")), strict=True)
    assert not jnp.array_equal(rounded["embed"], held["embed"])
