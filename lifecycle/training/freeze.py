"""Frozen parameters: which ones a stage does not train, and the split of a tree into trained and frozen."""

from collections.abc import Sequence

import jax

from lifecycle.core.config import ConfigError
from lifecycle.core.typing import PyTree
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, abstract_params
from lifecycle.training.patterns import matched_paths


def merged(trained: Params, frozen: Params) -> Params:
    """The full tree, from its two parts."""
    both = trained.keys() & frozen.keys()
    return {**trained, **frozen, **{key: merged(trained[key], frozen[key]) for key in both}}


def split(params: Params, frozen: Params) -> tuple[Params, Params]:
    """(trained, frozen) parts of a tree; `frozen` gives the frozen part's structure."""
    rest: Params = {}
    part: Params = {}
    for key, value in params.items():
        if key not in frozen:
            rest[key] = value
        elif isinstance(value, dict):
            for tree, inner in zip((rest, part), split(value, frozen[key]), strict=True):
                tree |= {key: inner} if inner else {}
        else:
            part[key] = value
    return rest, part


def frozen_part(model: ModelConfig, patterns: Sequence[str]) -> Params:
    """Shapes of the parameters that `patterns` freeze.

    Patterns as in `matched_paths`, which raises `ConfigError`; so does this if nothing is left to train.
    """
    matched = matched_paths(model, patterns, "freeze")
    if all(matched.values()):
        raise ConfigError(f"freeze: {', '.join(patterns)} leaves no parameter to train; freeze less")
    return _pruned(
        jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if matched[path] else None, abstract_params(model))
    )


def _pruned(tree: PyTree) -> Params:
    """A tree of dicts without `None`s and empty dicts."""
    inner = {key: _pruned(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in inner.items() if value is not None and value != {}}
