"""Rematerialisation: which of a layer's intermediate arrays are saved for the backward pass.

Some arrays in a layer have names (`RematName`). A policy says for each whether it is saved, offloaded to host memory,
or recomputed (the default: a layer saves its input only). Chen et al. 2016, "Training Deep Nets with Sublinear Memory
Cost".
"""

from collections.abc import Callable
from typing import Any

import jax

from lifecycle.kernels.quantised import ROW_MAXIMUM
from lifecycle.model.config import Remat

MEAN_SQUARE = "mean_square"  # of the rows that a norm divides by their root: always saved


def rematerialised[**A, R](layer: Callable[A, R], remat: Remat) -> Callable[A, R]:
    """`layer` with its intermediate arrays treated according to `remat`."""
    policy: Any = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[MEAN_SQUARE, ROW_MAXIMUM, *(name for name, what in remat.items() if what == "save")],
        names_which_can_be_offloaded=[name for name, what in remat.items() if what == "offload"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(layer, policy=policy, prevent_cse=False)
