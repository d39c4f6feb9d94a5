"""Settings of a family: the mapping between keys of a published `config.json` and fields of `ModelConfig`.

Each setting works both ways. `read` takes its keys from the file's tree and returns fields by dotted name; `write`
returns the keys. A value that this decoder does not support is rejected, never ignored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lifecycle.model.config import LayerKind, ModelConfig

type Tree = Mapping[str, Any]
type Fields = dict[str, Any]

LAYER_TYPES: dict[str, LayerKind] = {"full_attention": "global", "sliding_attention": "local"}


class WeightsError(ValueError):
    """Weights or a config that do not fit; the message lists what is wrong."""


class MissingKey(Exception):
    """A key that a config.json must have; all missing ones are reported together."""


def require_forms(tree: Tree) -> None:
    """Raises `WeightsError` naming each key of the wrong type that other fields are computed from."""
    wrong = [f"{key}={value!r} is not {what}" for key, (what, fits) in FORMS.items()
             if key in tree and not fits(value := tree[key])]  # fmt: skip
    if wrong:
        raise WeightsError(f"config.json: {'; '.join(wrong)}; use the config.json published with the weights")


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_mapping(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


FORMS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads"), ("a positive number", _is_positive)),
    **dict.fromkeys(("quantization_config", "rope_scaling", "rope_parameters"), ("a mapping", _is_mapping)),
    "layer_types": ("a list of names", _are_names),
}


class Setting(Protocol):
    """One setting of a family, translated both ways."""

    @property
    def read(self) -> Callable[[Tree], Fields]:
        """Our fields by dotted name, from a published config."""
        ...

    @property
    def write(self) -> Callable[[ModelConfig], dict[str, Any]]:
        """The published keys, from our config."""
        ...


REQUIRED = object()
type Default = Any  # a value, or a function from the tree to one


@dataclass(frozen=True)
class Key:
    """One field under one key. `default` is the value for a file without the key, and for `null` unless
    `is_nullable`."""

    ours: str
    published: str
    default: Default = REQUIRED
    is_nullable: bool = False

    def read(self, tree: Tree) -> Fields:
        """Our field from the published key; raises `MissingKey` if it is absent and has no default."""
        value = tree.get(self.published)
        if value is not None or (self.is_nullable and self.published in tree):
            return {self.ours: value}
        if self.default is REQUIRED:
            raise MissingKey(self.published)
        return {self.ours: self.default(tree) if callable(self.default) else self.default}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The published key with our field's value."""
        return {self.published: field_of(config, self.ours)}


@dataclass(frozen=True)
class Always:
    """A field with one value in all models of a family."""

    ours: str
    value: Any

    def read(self, tree: Tree) -> Fields:
        """The field with the family's value."""
        return {self.ours: self.value}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """No key: the family implies the value."""
        return {}


@dataclass(frozen=True)
class Only:
    """A key of which this decoder supports one value; a file with another is rejected."""

    published: str
    value: Any
    is_written: bool = False

    def read(self, tree: Tree) -> Fields:
        """No field; raises `WeightsError` if the published value is another one."""
        if tree.get(self.published, self.value) not in (self.value, None):
            given = tree[self.published]
            raise WeightsError(
                f"config.json: {self.published}={given!r}; only {self.published}={self.value!r} is supported"
            )
        return {}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The key, if the family's published configs have it."""
        return {self.published: self.value} if self.is_written else {}


@dataclass(frozen=True)
class Both:
    """A setting with its own `read` and `write`."""

    read: Callable[[Tree], Fields]
    write: Callable[[ModelConfig], dict[str, Any]]


@dataclass(frozen=True)
class LayerKinds:
    """`layer_types` and `sliding_window`: which layers are local. `default` gives the kinds for a file that does not
    list them; a family without windows does not write them either."""

    default: Callable[[Tree], list[LayerKind]]
    is_written: bool = True

    def read(self, tree: Tree) -> Fields:
        """`layer_pattern`, and `window` if any layer is local."""
        listed = tree.get("layer_types")
        kinds: list[LayerKind] = self.default(tree) if listed is None else [_kind(name) for name in listed]
        if len(kinds) != tree["num_hidden_layers"]:
            raise WeightsError(
                f"config.json: layer_types has {len(kinds)} layers, num_hidden_layers={tree['num_hidden_layers']}"
            )
        window = tree.get("sliding_window") if "local" in kinds else None
        return {"layer_pattern": shortest_pattern(kinds), "window": window}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """`layer_types` and `sliding_window`, if the family's published configs have them."""
        if not self.is_written:
            return {}
        names = {kind: name for name, kind in LAYER_TYPES.items()} | {"nope": "full_attention"}
        kinds = [config.kind(layer) for layer in range(config.num_layers)]
        return {"layer_types": [names[kind] for kind in kinds], "sliding_window": config.window}


def _kind(name: str) -> LayerKind:
    if name not in LAYER_TYPES:
        raise WeightsError(f"config.json: layer type {name!r}; supported: {', '.join(LAYER_TYPES)}")
    return LAYER_TYPES[name]


def shortest_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest pattern that, repeated, gives these layers."""
    fits = (n for n in range(1, len(kinds)) if all(kinds[i] == kinds[i % n] for i in range(n, len(kinds))))
    return tuple(kinds[: next(fits, len(kinds))])


def all_global(tree: Tree) -> list[LayerKind]:
    """Every layer attends to all positions."""
    return ["global"] * tree["num_hidden_layers"]


def local_then_global(period: int) -> Callable[[Tree], list[LayerKind]]:
    """The last layer of each period is global, the others are local."""
    return lambda tree: ["local" if (i + 1) % period else "global" for i in range(tree["num_hidden_layers"])]


def field_of(config: ModelConfig, name: str) -> Any:
    """The field with this dotted name; None inside a section that is not set."""
    value: Any = config
    for key in name.split("."):
        value = None if value is None else getattr(value, key)
    return value
