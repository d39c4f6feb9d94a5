"""Opens a bundle, the exported form of a model, written by this project or another tool."""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lifecycle.core.artifact import intact_hash
from lifecycle.inference.defaults import end_ids, read_generation, sampling_of
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.weights import layer
from lifecycle.model.config import ModelConfig, WeightFormat
from lifecycle.model.parameter import Parameter
from lifecycle.model.params import Params, abstract_in_use, drafter_parameters, in_layers, logical_axes
from lifecycle.model.stacks import DRAFTER, MODULES, MODULES_STACK
from lifecycle.model.weight_formats import check_groups, leaf_in_format
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import tree_shardings
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.weights.drafters import FOLDER, load_drafter
from lifecycle.weights.modules import FOLDER as MODULES_FOLDER
from lifecycle.weights.modules import load_modules
from lifecycle.weights.published import held_config, load_config, load_weights, open_weights


def load_bundle(
    folder: str | Path, mesh: Mesh | None = None, weights: WeightFormat | None = None, is_apart: bool = False
) -> Model:
    """Weights in a format and layer by layer (see `load_params`), tokenizer, chat template and defaults of a bundle.

    The version is the manifest's content hash, or the hash over the files of a bundle without a manifest. Raises a
    `ValueError` that names the file if anything is missing, damaged, changed since its manifest, or inconsistent.
    """
    folder = Path(folder)
    version = intact_hash(folder)
    config = load_config(folder).trunk  # prediction modules are read where they draft (`inference/drafters.py`)
    tokenizer = load_tokenizer(folder, config.vocab_size)
    template = ChatTemplate.load(folder, tokenizer).live
    defaults, params = _defaults(folder, template), load_params(config, folder, mesh, weights, is_apart)
    return Model(config, params, tokenizer, template, defaults, version)


def load_head(
    config: ModelConfig, folder: Path, mesh: Mesh | None = None, weights: WeightFormat | None = None
) -> tuple[ModelConfig, Params] | None:
    """The drafting head in the folder of a model's bundle, sharded over `mesh` or on this process's first device: the
    model's config with the head's, and the head's arrays in float32, or its matrices in a format. None: it has none."""
    if not (folder / FOLDER).is_dir():
        return None
    shardings = None if mesh is None else lambda c: tree_shardings(mesh, logical_axes(c))[DRAFTER]
    config, head = load_drafter(config, folder / FOLDER, shardings)
    if weights is None:
        return config, head
    if mesh is not None:
        check_groups(config, MeshConfig(**mesh.shape), weights)
    return config, jax.tree.map(partial(leaf_in_format, weights=weights), drafter_parameters(config), head)


def load_module(
    folder: Path, mesh: Mesh | None = None, weights: WeightFormat | None = None
) -> tuple[ModelConfig, Params] | None:
    """The first prediction module in a bundle's folder, as `load_params` has weights: the model's config with this one
    module, and the module's arrays, not stacked. None: the bundle has none."""
    config, apart = load_config(folder), folder / MODULES_FOLDER
    if not apart.is_dir() and not held_config(config, open_weights(config, folder)).num_mtp_modules:
        return None
    config = config.model_copy(update={"num_mtp_modules": 1})
    load, path = (load_modules, apart) if apart.is_dir() else (load_weights, folder)
    stack = _load(load, config, path, mesh, weights, [MODULES])[MODULES][MODULES_STACK]
    return config, jax.tree.map(lambda array: array[0], stack)


def load_params(
    config: ModelConfig,
    folder: Path,
    mesh: Mesh | None = None,
    weights: WeightFormat | None = None,
    is_apart: bool = False,
) -> Params:
    """A bundle's weights as inference uses them (`params_in_use`), sharded over `mesh` as in training, or on this
    process's first device. With a format each is converted when it is there, before the next is read. `is_apart`: so
    are stacks of layers, into the arrays that an engine takes; it would convert them later, and need twice the memory.

    Raises `ConfigError` for a mesh that does not fit the model, and what `load_weights` raises.
    """
    params = _load(load_weights, config, folder, mesh, weights, is_apart=is_apart)
    if not is_apart:
        return params
    blocks = in_layers(config, params["blocks"], lambda layers, number: layers[number], lambda x: isinstance(x, list))
    return {**params, "blocks": blocks}


def _load(
    load: Callable[..., Params],
    config: ModelConfig,
    path: Path,
    mesh: Mesh | None,
    weights: WeightFormat | None,
    parts: Collection[str] | None = None,
    is_apart: bool = False,
) -> Params:
    """What `load` reads of all parameters, or of those that their tree has under some names. `is_apart`: each stack's
    array is a list of its layers'."""

    def wanted(tree: Params) -> Params:
        return tree if parts is None else {name: tree[name] for name in parts}

    def convert(declared: Parameter, array: jax.Array) -> Any:
        held = array if weights is None else leaf_in_format(declared, array, weights)
        if not (is_apart and declared.is_stacked):
            return held
        return [jax.tree.map(partial(layer, number=number), held) for number in range(declared.shape[0])]

    like = wanted(abstract_in_use(config))
    if mesh is None:
        return load(config, path, like=like, convert=convert)
    config.check_mesh(MeshConfig(**mesh.shape))
    check_groups(config, MeshConfig(**mesh.shape), weights)
    shardings = tree_shardings(mesh, wanted(logical_axes(config)))
    return load(config, path, shardings, like=like, convert=convert)


def _defaults(folder: Path, template: ChatTemplate) -> SamplingParams:
    """The folder's sampling settings; its end-of-text ids are added to the template's."""
    stops = tuple(dict.fromkeys([*template.stop_ids, *end_ids(read_generation(folder))]))
    return SamplingParams(**sampling_of(folder).plain(), stop_ids=stops)
