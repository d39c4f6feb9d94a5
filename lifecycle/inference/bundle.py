"""Opens a bundle, the exported form of a model, written by this project or another tool."""

from functools import partial
from pathlib import Path

from jax.sharding import Mesh

from lifecycle.core.artifact import intact_hash
from lifecycle.inference.defaults import end_ids, read_generation, sampling_of
from lifecycle.inference.model import DraftHead, Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig, WeightFormat
from lifecycle.model.params import Params, abstract_in_use, logical_axes
from lifecycle.model.stacks import DRAFTER
from lifecycle.model.weight_formats import check_groups, leaf_in_format
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import tree_shardings
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.weights.drafters import FOLDER, load_drafter
from lifecycle.weights.published import load_config, load_weights


def load_bundle(folder: Path, mesh: Mesh | None = None, weights: WeightFormat | None = None) -> Model:
    """Weights in a format (see `load_params`), tokenizer, chat template and defaults of a bundle.

    The version is the manifest's content hash, or the hash over the files of a bundle without a manifest. Raises a
    `ValueError` that names the file if anything is missing, damaged, changed since its manifest, or inconsistent.
    """
    version = intact_hash(folder)
    config = load_config(folder).trunk  # decoding does not use prediction modules
    tokenizer = load_tokenizer(folder, config.vocab_size)
    template = ChatTemplate.load(folder, tokenizer).live
    defaults, params = _defaults(folder, template), load_params(config, folder, mesh, weights)
    return Model(config, params, tokenizer, template, defaults, version, load_draft_head(config, folder, mesh))


def load_draft_head(config: ModelConfig, folder: Path, mesh: Mesh | None = None) -> DraftHead | None:
    """The drafter in a bundle's folder, if it has one, sharded as its target or on this process's first device."""
    if not (folder / FOLDER).is_dir():
        return None
    if mesh is None:
        return DraftHead(*load_drafter(config, folder / FOLDER))
    return DraftHead(*load_drafter(config, folder / FOLDER, lambda c: tree_shardings(mesh, logical_axes(c))[DRAFTER]))


def load_params(
    config: ModelConfig, folder: Path, mesh: Mesh | None = None, weights: WeightFormat | None = None
) -> Params:
    """A bundle's weights as inference uses them (`params_in_use`), sharded over `mesh` as in training, or on this
    process's first device. With a format each is converted when it is there, before the next is read.

    Raises `ConfigError` for a mesh that does not fit the model, and what `load_weights` raises.
    """
    convert = None if weights is None else partial(leaf_in_format, weights=weights)
    if mesh is None:
        return load_weights(config, folder, like=abstract_in_use(config), convert=convert)
    config.check_mesh(MeshConfig(**mesh.shape))
    check_groups(config, MeshConfig(**mesh.shape), weights)
    shardings = tree_shardings(mesh, logical_axes(config))
    return load_weights(config, folder, shardings, like=abstract_in_use(config), convert=convert)


def _defaults(folder: Path, template: ChatTemplate) -> SamplingParams:
    """The folder's sampling settings; its end-of-text ids are added to the template's."""
    stops = tuple(dict.fromkeys([*template.stop_ids, *end_ids(read_generation(folder))]))
    return SamplingParams(**sampling_of(folder).plain(), stop_ids=stops)
