"""Small states and the checkpoints that hold them, for tests of saving, of damage and of reading parts."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lifecycle.core.progress import Silent
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.config import CheckpointConfig

LAYERS = 3


def fresh_state(seed: int = 0, width: int = 8) -> dict[str, Any]:
    """Parameters in float32 and bfloat16, AdamW's state, a counter."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embed": jax.random.normal(keys[0], (32, width)),
        "blocks": {
            "0+1": {
                "attention": {"q": jax.random.normal(keys[1], (LAYERS, width, width))},
                "norm": {"scale": jax.random.normal(keys[2], (LAYERS, width), jnp.bfloat16)},
            },
        },
    }
    return {"params": params, "opt_state": optax.adamw(1e-3).init(params), "step": jnp.int32(2**31 - 1)}


def assert_bit_equal(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def save_steps(folder: Path, *steps: int, keep: int = 9) -> None:
    checkpoints = Checkpointer(folder, CheckpointConfig(every=1, keep=keep))
    for step in steps:
        checkpoints.save(step, fresh_state(step), {"step": step}, {"note": f"step {step}"})
    checkpoints.close()
