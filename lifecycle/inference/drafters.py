"""The drafter that a server's settings describe, with what it needs of bundles."""

from pathlib import Path

from jax.sharding import Mesh

from lifecycle.core.config import ConfigError
from lifecycle.inference.bundle import load_bundle, load_head, load_module
from lifecycle.inference.draft_head import Head
from lifecycle.inference.draft_model import DraftModel
from lifecycle.inference.draft_module import Module
from lifecycle.inference.drafting import Drafter, Ngram
from lifecycle.inference.model import Model
from lifecycle.inference.speculation import SpeculationConfig
from lifecycle.model.config import WeightFormat


def drafter_for(
    config: SpeculationConfig | None,
    model: Model,
    folder: Path,
    mesh: Mesh | None = None,
    weights: WeightFormat | None = None,
    length: int | None = None,
) -> Drafter | None:
    """The drafter for a model, from whose bundle's `folder` a head or a module is read; sharded as the model is, with
    its weights in the format that the settings name, or else in the model's, `weights`. `length`: the longest context
    that is served, if not the model's.

    Raises `ConfigError` if the settings want what is not there or does not fit the model.
    """
    if config is None:
        return None
    weights = config.weights or weights
    match config.method:
        case "ngram":
            return Ngram(num_tokens=config.num_tokens)
        case "eagle":
            if (head := load_head(model.config, folder, mesh, weights)) is None:
                raise ConfigError(
                    "speculation.method=eagle: the bundle has no folder `drafter`; train one with a stage `eagle` "
                    "(docs/drafting.md), or set speculation.method=ngram"
                )
            return Head(head[1], head[0], num_tokens=config.num_tokens)
        case "mtp":
            if (module := load_module(folder, mesh, weights)) is None:
                raise ConfigError(
                    "speculation.method=mtp: the bundle has no prediction modules; train one with "
                    "model.num_mtp_modules=1 (docs/prediction-modules.md), or set speculation.method=ngram"
                )
            return Module(module[1], module[0], num_tokens=config.num_tokens)
        case "model":
            assert config.bundle is not None, "the settings were checked"
            draft = _loaded(config.bundle, mesh, weights)
            require_fit(draft, model, length or model.config.max_seq_len)
            return DraftModel(draft.params, draft.config, model.config, num_tokens=config.num_tokens)


def _loaded(bundle: Path, mesh: Mesh | None, weights: WeightFormat | None) -> Model:
    try:
        return load_bundle(bundle, mesh, weights, is_apart=True)
    except ConfigError as error:  # it speaks of a model's settings, and there are two models
        raise ConfigError(f"speculation.bundle={bundle}: {error}") from error


def require_fit(draft: Model, model: Model, length: int) -> None:
    """Raises `ConfigError` for a draft model whose ids mean something else, or with a shorter context than `length`."""
    if (difference := draft.tokenizer.difference(model.tokenizer)) is not None:
        raise ConfigError(
            f"speculation.bundle: the draft model has another tokenizer than the model: {difference}; use a smaller "
            "model of the same family, or speculation.method=ngram"
        )
    if draft.config.max_seq_len < length:
        raise ConfigError(
            f"speculation.bundle: the draft model has contexts of {draft.config.max_seq_len} tokens, and {length} are "
            f"served; set serve.max_seq_len={draft.config.max_seq_len}, or use another draft model"
        )
