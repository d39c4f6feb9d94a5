"""The model that `chat` and `generate` use: a training stage's weights, a version, or a bundle's."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import name_first, read_config
from lifecycle.cli.make import BUNDLES, start_jax
from lifecycle.core.artifact import require_intact
from lifecycle.core.config import ConfigError
from lifecycle.core.file_hashes import FileHashes
from lifecycle.core.files import user_cache
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.defaults import sampling_of_run
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import WeightFormat
from lifecycle.model.weight_formats import in_format
from lifecycle.ops.registry import SHOWN_HASH, Registry, verify
from lifecycle.stages.chain import finished_stage
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import PRODUCTION
from lifecycle.stages.storage import fetch_version, read_registry
from lifecycle.stages.weights import trained_params_in_use
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.weights.adapters import merged, read_adapter

type StageOrVersion = Annotated[
    str,
    Parameter(
        help="A training stage, or a version: alias, hash or its beginning (production if none is given); then "
        "settings, as key=value."
    ),
]


def open_model(
    config_or_bundle: Path, words: tuple[str, ...], weights: WeightFormat | None = None
) -> tuple[Model, str]:
    """The model that a command line names, with its weights in a format, and a line that says which."""
    if config_or_bundle.is_dir():
        if words:
            raise ConfigError(
                f"{words[0]!r}: {config_or_bundle} is a bundle, which has no stages, versions or settings; the "
                "rest are options, as --temperature=0"
            )
        start_jax(user_cache() / BUNDLES)
        model = load_bundle(config_or_bundle, weights=weights)
        return model, f"{config_or_bundle} is version {model.version[:SHOWN_HASH]}"
    name, overrides = name_first(words)
    config = read_config(config_or_bundle, overrides)
    start_jax(config.folder)
    if name in config.train:
        return _trained(config, name, weights), f"the weights of stage {name}"
    read_registry(config)
    version = Registry(config.registry_path).resolve(name or PRODUCTION)
    fetch_version(config, version)
    verify(version)
    return load_bundle(version.path, weights=weights), f"{name or PRODUCTION} is version {version.short}"


def with_adapter(model: Model, folder: Path, weights: WeightFormat | None) -> Model:
    """The model with an adapter's matrices added to its own, then in a format; its version is the adapter's."""
    adapter = read_adapter(model.config, folder)
    params = in_format(model.config, merged(model.params, adapter), weights)
    return replace(model, params=params, version=adapter.version)


def _trained(config: RunConfig, stage: str, weights: WeightFormat | None) -> Model:
    """The model of a finished training stage, from its checkpoint."""
    text, trained = finished_stage(config, "tokenizer"), finished_stage(config, stage)
    for artifact in (text, trained):
        require_intact(artifact, FileHashes(config.folder))
    folder, model = text.path, config.trained_model(stage)
    tokenizer = load_tokenizer(folder)
    plain = trained_params_in_use(trained, model, weights=config.train[stage].weights)
    sampling = sampling_of_run(config.export.sampling, config.origin_of(stage))
    defaults = SamplingParams(**sampling.plain())
    template = ChatTemplate.load(folder, tokenizer).live
    params = in_format(model.target, plain, weights)
    return Model(model.target, params, tokenizer, template, defaults, trained.content_hash)
