"""Frozen parameters: which ones a stage does not train, and the split of a tree into trained and frozen."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import jax

from lifecycle.core.config import ConfigError, nearest
from lifecycle.core.typing import PyTree
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params, abstract_params
from lifecycle.weights.names import canonical_name, is_stacked, layer_names


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

    A pattern is a canonical name, or a prefix of one that ends at a dot, with the wildcards of file names: `embed`,
    `blocks.*.attention`. Layers that are stacked in one array are frozen together. Raises `ConfigError` for a pattern
    that matches nothing (with the nearest name) or only some layers of a stack, and if nothing is left to train.
    """
    params = abstract_params(model)
    names = {
        path: list(layer_names(path, leaf)) if is_stacked(path, leaf) else [canonical_name(path)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for pattern in patterns:
        _check_pattern(pattern, list(names.values()))
    is_frozen = {path: any(_matches(stack[0], pattern) for pattern in patterns) for path, stack in names.items()}
    if all(is_frozen.values()):
        raise ConfigError(f"freeze: {', '.join(patterns)} leaves no parameter to train; freeze less")
    return _pruned(jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if is_frozen[path] else None, params))


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _check_pattern(pattern: str, stacks: Iterable[list[str]]) -> None:
    """Raises `ConfigError` if `pattern` matches nothing or only a part of a stack; `stacks`: the names of each array's
    layers."""
    matched = [(names, [name for name in names if _matches(name, pattern)]) for names in stacks]
    if not any(some for _, some in matched):
        known = {name for names, _ in matched for name in names}
        raise ConfigError(f"freeze: {pattern!r} is not a parameter of this model{nearest(pattern, known)}")
    for names, some in matched:
        if some and len(some) < len(names):
            general = ".".join("*" if part.isdigit() else part for part in some[0].split("."))
            raise ConfigError(
                f"freeze: {pattern!r} matches {len(some)} of {len(names)} layers that are stacked in one array, "
                f"{names[0]} to {names[-1]}; freeze all of them: {general}"
            )


def _pruned(tree: PyTree) -> Params:
    """A tree of dicts without `None`s and empty dicts."""
    inner = {key: _pruned(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in inner.items() if value is not None and value != {}}
