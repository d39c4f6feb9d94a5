"""A bundle whose weights are written in another format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lifecycle.cli.terminal import terminal
from lifecycle.core.artifact import intact_hash
from lifecycle.core.config import ConfigError
from lifecycle.model.config import ModelConfig
from lifecycle.weights.published import (
    FLOAT32,
    family_of,
    held_config,
    load_config,
    open_weights,
    read_from,
    require_fit,
)


@dataclass(frozen=True)
class ExportedBundle:
    """What other formats are made from: the model without prediction modules, its version, and a reader of its arrays
    by canonical name, in float32, which holds one at a time."""

    config: ModelConfig
    version: str
    read: Callable[[str, int | None], np.ndarray]


def open_for_export(bundle: Path, out: Path) -> ExportedBundle:
    """A bundle that is to be written to `out`. Raises `ConfigError` if that is there already, and `ValueError` for a
    bundle that is damaged or does not fit its config."""
    if out.exists():
        raise ConfigError(f"{out} already exists; choose another name, or delete it")
    version, config = intact_hash(bundle), load_config(bundle)
    source, family = open_weights(config, bundle), family_of(config)
    held = held_config(config, source)
    require_fit(held, family, source, str(bundle))
    return ExportedBundle(held.trunk, version, read_from(held, family.layout, source, FLOAT32))


def tell(*lines: str) -> None:
    """Prints what was written, as it is."""
    console = terminal(highlight=False, markup=False)
    for line in lines:
        console.print(line, soft_wrap=True)
