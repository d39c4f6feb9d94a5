"""The adapter that a stage trains, in PEFT's published form: its matrices as they are trained, in a model's tree.

What must hold: an adapter from files has the stage's own settings, all of them. What is written is what PEFT makes of
the same settings: the scale is in `adapter_config.json`, not in the matrices.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lifecycle.model.adapters import LowRank, Matrices
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, abstract_params
from lifecycle.model.stacks import ADAPTER
from lifecycle.weights.adapters import AdapterError, modules_of, read_adapter, read_matrices, save_matrices
from lifecycle.weights.names import layer_names, stack_like, unstack
from lifecycle.weights.safetensors_files import listing


def read_trained(config: ModelConfig, folder: Path) -> Matrices:
    """The matrices of the adapter in a folder, as a stage trains them: `b` without the scale.

    Raises `AdapterError` as `read_adapter` does, and for one of other sizes or settings than `config.adapter`.
    """
    read_adapter(config, folder)
    settings, matrices = read_matrices(config, folder)
    own = config.adapter
    assert own is not None
    leaves = jax.tree_util.tree_leaves_with_path(adapter_shapes(config))
    wanted = {name.rpartition(".")[0] for path, leaf in leaves for name in layer_names(path, leaf)}
    wrong = [f"{'has' if name in matrices else 'lacks'} {name}" for name in sorted(wanted ^ matrices.keys())]
    for array, module, _ in modules_of(config):
        if array in matrices and (found := settings.scale(module)) != (own.rank, own.scale):
            wrong.append(f"{module} has rank {found[0]} and scale {found[1]:g}, the stage {own.rank} and {own.scale:g}")
    if settings.use_dora != (own.kind == "dora"):
        wrong.append(f"use_dora={settings.use_dora}, and the stage has kind={own.kind}")
    if wrong:
        raise AdapterError(
            f"{folder} is no adapter with the stage's settings; set rank, alpha, targets, kind and scaling of "
            f"train.STAGE.adapter to its own:\n{listing(wrong)}"
        )
    return matrices


def save_trained(config: ModelConfig, matrices: Matrices, folder: Path, base_model: str) -> None:
    """Writes the folder of the adapter that a stage has trained, `config.adapter`, in float32, as PEFT reads it."""
    own = config.adapter
    assert own is not None
    sizes = {
        "r": own.rank,
        "lora_alpha": own.alpha,
        "use_rslora": own.scaling == "rslora",
        "use_dora": own.kind == "dora",
    }
    save_matrices(config, matrices, folder, base_model, sizes)


def matrices_of(tree: Params) -> Matrices:
    """The matrices of an adapter's tree, as a model's parameters have it, by canonical name."""
    found: dict[str, dict[str, Any]] = {}
    for name, array in unstack(tree).items():
        matrix, _, part = name.rpartition(".")
        found.setdefault(matrix, {})[part] = np.asarray(array)
    return {name: LowRank(**parts) for name, parts in found.items()}


def adapter_shapes(config: ModelConfig) -> Params:
    """The shapes of `config.adapter`'s tree."""
    return abstract_params(config)[ADAPTER]


def tree_of(config: ModelConfig, matrices: Matrices) -> Params:
    """The tree of an adapter's matrices, in host memory: undoes `matrices_of`."""
    flat = {f"{name}.{part}": value for name, pair in matrices.items() for part, value in vars(pair).items()}
    return stack_like({name: value for name, value in flat.items() if value is not None}, adapter_shapes(config))
