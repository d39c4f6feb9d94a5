"""Patterns that name some of a model's parameters in a setting.

A pattern is a canonical name, or a prefix of one that ends at a dot, with the wildcards of file names: `embed`,
`blocks.*.attention`. What must hold: layers that are stacked in one array are named together.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import jax

from lifecycle.core.config import ConfigError, nearest
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import abstract_params
from lifecycle.weights.names import KeyPath, canonical_name, is_stacked, layer_names


def matched_paths(model: ModelConfig, patterns: Iterable[str], setting: str) -> dict[KeyPath, tuple[str, ...]]:
    """For each parameter's path, those of `patterns` that match it, in their order.

    Raises `ConfigError`, which names `setting`, for a pattern that matches nothing (with the nearest name) or only some
    layers of a stack.
    """
    names = {
        path: list(layer_names(path, leaf)) if is_stacked(path, leaf) else [canonical_name(path)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(model))
    }
    patterns = tuple(patterns)
    for pattern in patterns:
        _check(pattern, list(names.values()), setting)
    return {path: tuple(p for p in patterns if _matches(stack[0], p)) for path, stack in names.items()}


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _check(pattern: str, stacks: Sequence[list[str]], setting: str) -> None:
    """Raises `ConfigError` if `pattern` matches nothing or only a part of a stack; `stacks`: the names of each array's
    layers."""
    matched = [(names, [name for name in names if _matches(name, pattern)]) for names in stacks]
    if not any(some for _, some in matched):
        known = {name for names, _ in matched for name in names}
        raise ConfigError(f"{setting}: {pattern!r} is not a parameter of this model{nearest(pattern, known)}")
    for names, some in matched:
        if some and len(some) < len(names):
            general = ".".join("*" if part.isdigit() else part for part in some[0].split("."))
            raise ConfigError(
                f"{setting}: {pattern!r} matches {len(some)} of {len(names)} layers that are stacked in one array, "
                f"{names[0]} to {names[-1]}; name all of them: {general}"
            )
