"""One dial: a decoder's sizes from its depth. What is given wins over what is filled in.

The shape matters little: losses stay within a few per cent over a wide range of width to depth (Kaplan et al. 2020,
"Scaling Laws for Neural Language Models", section 3.1), so one number decides all sizes. Training's part of the dial,
from these sizes to batch, learning rate and token budget, is `training/dial.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEPTH = "depth"
ASPECT = 64  # GPT-3's smallest model: 12 layers of width 768 (Brown et al. 2020, table 2.1)
WIDE = 2048  # from this width on heads have 128 dimensions, below it 64, as in the same table
LANES = 128  # a feed-forward fills a TPU's lanes
LARGEST = 4096  # layers


@dataclass(frozen=True)
class Filled:
    """A setting that was left out, its value, and the rule that decides it."""

    setting: str
    value: Any
    rule: str


def fill_sizes(tree: Mapping[str, Any]) -> tuple[Filled, ...]:
    """The sizes that a model's settings leave out, decided by their `depth`; empty without one. Values that are no
    numbers are left to the settings' own checks. Raises `ValueError` if the given sizes contradict each other."""
    if DEPTH not in tree:
        return ()
    depth = tree[DEPTH]
    if not isinstance(depth, int) or isinstance(depth, bool) or not 1 <= depth <= LARGEST:
        raise ValueError(f"depth={depth!r}: expected a number of layers from 1 to {LARGEST}")
    if "num_layers" in tree:
        raise ValueError(
            f"depth={depth} is the number of layers and decides all other sizes; leave out "
            f"num_layers={tree['num_layers']}, or leave out depth and give all sizes"
        )
    sizes = {name: value for name, value in tree.items() if isinstance(value, int) and not isinstance(value, bool)}
    filled: list[Filled] = []

    def fill(name: str, value: int, rule: str) -> None:
        if name not in tree:
            filled.append(Filled(name, value, rule))
            sizes[name] = value

    fill("num_layers", depth, "depth")
    width = sizes.get("d_model", ASPECT * depth)
    fill("head_dim", 64 if width < WIDE else 128, f"64 below width {WIDE}, else 128 (GPT-3, table 2.1)")
    if (head_dim := sizes.get("head_dim", 0)) < 1:
        return tuple(filled)
    fill("d_model", math.ceil(width / head_dim) * head_dim, f"{ASPECT} x depth, a multiple of head_dim (GPT-3 125M's)")
    width = sizes.get("d_model", 0)
    if "num_heads" not in tree and width % head_dim:
        raise ValueError(f"d_model={width} is not a multiple of head_dim={head_dim}; change one, or give num_heads")
    fill("num_heads", width // head_dim, "d_model / head_dim")
    fill("num_kv_heads", sizes.get("num_heads", 0), "num_heads: every head has its own keys")
    d_ff = math.ceil(8 * width / 3 / LANES) * LANES
    fill("d_ff", d_ff, f"8/3 x d_model (Shazeer 2020: the weights of 4 x, ungated), a multiple of {LANES}")
    return tuple(filled)
