"""The drafter that a server's settings describe, with what it needs of bundles."""

from pathlib import Path

from jax.sharding import Mesh

from lifecycle.core.config import ConfigError
from lifecycle.inference.bundle import load_head, load_module
from lifecycle.inference.draft_head import Head
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
) -> Drafter | None:
    """The drafter for a model, from whose bundle's `folder` a head or a module is read; sharded as the model is, a
    module with its weights in a format.

    Raises `ConfigError` if the settings want what is not there or does not fit the model.
    """
    if config is None:
        return None
    match config.method:
        case "ngram":
            return Ngram(config.num_tokens)
        case "eagle":
            if (head := load_head(model.config, folder, mesh)) is None:
                raise ConfigError(
                    "speculation.method=eagle: the bundle has no folder `drafter`; train one with a stage `eagle` "
                    "(docs/drafting.md), or set speculation.method=ngram"
                )
            return Head(head[1], head[0], config.num_tokens)
        case "mtp":
            if (module := load_module(folder, mesh, weights)) is None:
                raise ConfigError(
                    "speculation.method=mtp: the bundle has no prediction modules; train one with "
                    "model.num_mtp_modules=1 (docs/prediction-modules.md), or set speculation.method=ngram"
                )
            return Module(module[1], module[0], config.num_tokens)
