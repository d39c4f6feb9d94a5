"""A family by its name, ours or a published file's."""

import difflib
from collections.abc import Mapping
from typing import Any

from lifecycle.model.config import ModelConfig
from lifecycle.weights.families import FAMILIES
from lifecycle.weights.families.family import Family
from lifecycle.weights.families.settings import WeightsError


def family_of(config: ModelConfig) -> Family:
    """The family that `config.family` names; raises `WeightsError` with the nearest name for an unknown one."""
    return family_named(config.family, "model.family")


def config_from(tree: Mapping[str, Any]) -> ModelConfig:
    """Reads a published config, of a text model or of one that wraps it."""
    name = tree.get("model_type")
    for family in FAMILIES.values():
        wrapper = family.wrapper
        if wrapper is not None and wrapper.model_type == name:
            return family.config_from(tree.get(wrapper.key, {}))
    return family_named(name, "config.json: model_type").config_from(tree)


def family_named(name: Any, where: str) -> Family:
    """The family of this name; `where` names its source in the message."""
    if name not in FAMILIES:
        close = difflib.get_close_matches(str(name), FAMILIES, n=1)
        nearest = f"; did you mean {close[0]!r}?" if close else ""
        raise WeightsError(f"{where} {name!r} is not a supported family: {', '.join(FAMILIES)}{nearest}")
    return FAMILIES[name]
