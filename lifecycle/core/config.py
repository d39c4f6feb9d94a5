"""Typed configuration: YAML in, one frozen tree out.

A run file is YAML. Every section is a `Section`: frozen, and an unknown key is an error that names the nearest known
one. A `VariantSection` is read as the subclass that one of its keys selects. A section with a `preset_folder` may name
a preset, a YAML file in that folder, next to the run file, above it or among the package's own: `model: llama3_1_8b`,
or `model: {preset: llama3_1_8b, max_seq_len: 4096}`, which changes one setting; inside other sections too. The command
line overrides scalars by dotted name (`train.chat.steps=10`). The only other inheritance: a stage that continues a run
has that run's settings.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from lifecycle.core.strict_yaml import parse_yaml

CONTAINERS = (list, tuple, dict)  # of sections
LARGEST_INT = 2**64 - 1  # a sampling seed
_PACKAGE = Path(__file__).parents[1]
# the package's own presets: a wheel has them inside, a clone beside the package
OWN_PRESETS = next(filter(Path.is_dir, (_PACKAGE / "configs", _PACKAGE.parent / "configs")), None)


class ConfigError(ValueError):
    """An invalid configuration; the message names the setting and the fix."""


class Section(BaseModel):
    """A frozen part of the configuration tree. Unknown keys are rejected, and so are, for numbers, `true` and `false`,
    NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    preset_folder: ClassVar[str | None] = None

    @field_validator("*", mode="wrap")
    @classmethod
    def _require_number(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        """Pydantic reads `true` as 1, and integers of any size."""
        result = read(value)
        if isinstance(value, bool) and isinstance(result, int | float) and not isinstance(result, bool):
            raise ValueError("expected a number")
        if isinstance(result, int) and abs(result) > LARGEST_INT:
            raise ValueError(f"larger than {LARGEST_INT:,}")
        return result

    def plain(self) -> dict[str, Any]:
        """The section as JSON-ready data, for manifests and hashes."""
        return self.model_dump(mode="json")

    @classmethod
    def variant_of(cls, tree: Mapping[str, Any]) -> type["Section"]:
        """The class that reads `tree`: this one."""
        return cls

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        own = handler(schema)
        if cls.preset_folder is None:
            return own
        changes = {name: value for name, value in handler.resolve_ref_schema(own).items() if name != "required"}
        changes["properties"] = changes["properties"] | {"preset": {"type": "string"}}
        named = {"type": "string", "description": f"a preset: a file NAME.yaml in a folder {cls.preset_folder}/"}
        return {"anyOf": [named, changes | {"required": ["preset"]}, own]}


class VariantSection(Section):
    """A section with variants: the field `variant_key` selects the subclass with the settings.

    The direct subclass declares the common fields and lists the variants; reading it returns an instance of one of
    them. Fields of this type are annotated `SerializeAsAny`, so that a variant's own settings are written too.
    """

    variant_key: ClassVar[str]
    fillable: ClassVar[frozenset[str]] = frozenset()  # needed, but other settings may decide them: no editor asks

    @classmethod
    def variants(cls) -> Mapping[str, type["VariantSection"]]:
        """The subclasses that the section may be read as, by name."""
        raise NotImplementedError

    @classmethod
    def variant_of(cls, tree: Mapping[str, Any]) -> type[Section]:
        """The subclass for `tree`; raises `ValueError`, with the nearest name, for an unknown or missing one."""
        if VariantSection not in cls.__bases__:
            return cls  # already one of the variants
        field, known = cls.model_fields[cls.variant_key], cls.variants()
        name = tree.get(cls.variant_key, None if field.is_required() else field.default)
        if name is None:
            raise ValueError(f"{cls.variant_key} is missing; known: {', '.join(known)}")
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"{cls.variant_key} {name!r} is not known{nearest(str(name), known)}")
        return known[name]

    @model_validator(mode="wrap")
    @classmethod
    def _as_variant(cls, tree: Any, read: ModelWrapValidatorHandler[Self]) -> Any:
        variant = cls.variant_of(tree) if isinstance(tree, Mapping) else cls
        return read(tree) if variant is cls else variant.model_validate(tree)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        if VariantSection not in cls.__bases__:
            return handler(schema)
        options = []
        for name, variant in cls.variants().items():
            option = handler.resolve_ref_schema(handler(variant.__pydantic_core_schema__))
            properties = option["properties"] | {cls.variant_key: {"const": name}}
            required = [field for field in option.get("required", ()) if field not in variant.fillable]
            options.append(option | {"properties": properties, "required": required})
        return {"oneOf": options}


def digest(value: Any) -> str:
    """SHA-256 (hex) of JSON-ready data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def load_config[S: Section](kind: type[S], path: str | Path, overrides: Iterable[str] = ()) -> S:
    """Reads a run file, resolves presets, applies `key=value` overrides and validates.

    Raises `ConfigError` with the file, the dotted key, what is wrong and, for an unknown key, the nearest known one.
    """
    path = Path(path)
    tree = _read_yaml(path)
    for override in overrides:
        _override(kind, tree, override)
    return validate(kind, _resolve_presets(kind, tree, path.resolve().parent), where=str(path))


def read_settings[S: Section](kind: type[S], settings: Iterable[str]) -> S:
    """A section of `key=value` words alone, with defaults for the rest; raises `ConfigError` as `load_config` does."""
    tree: dict[str, Any] = {}
    for setting in settings:
        _override(kind, tree, setting)
    return validate(kind, tree, where="settings")


def validate[S: Section](kind: type[S], tree: Mapping[str, Any], where: str = "config") -> S:
    """Builds `kind` from plain data; turns pydantic's errors into one `ConfigError`."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(kind, tree, issue) for issue in error.errors()]
        raise ConfigError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def overlaid(annotation: Any, below: Any, above: Any) -> Any:
    """Settings `above`, and from `below` those that they leave out; both will be read as `annotation`. Sections inside
    are overlaid too, also those of a mapping by name, from which null takes one away; all else is one value, and so is
    a section that `above` makes one of another kind."""
    section = _section_in(annotation)
    if section is None or not all(isinstance(s, Mapping) for s in (below, above)):
        return above
    both = {**below, **above}
    if _has_items(annotation, above):
        named = {name: overlaid(section, below.get(name), item) for name, item in both.items()}
        return {name: item for name, item in named.items() if item is not None or name not in below}
    if _variant(section, both) is not _variant(section, below):
        return above
    common = below.keys() & above.keys()
    return both | {key: overlaid(_annotation_at(section, both, key), below[key], above[key]) for key in common}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        tree = parse_yaml(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(tree).__name__}")
    return tree


def _override(kind: type[Section], tree: dict[str, Any], override: str) -> None:
    """Changes one setting of a `tree` that will be read as `kind`."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"override {override!r}: expected key=value, for example train.pretrain.steps=100")
    *parents, leaf = name.split(".")
    annotation: Any = kind
    for depth, parent in enumerate(parents, 1):
        if tree and _has_items(annotation, tree) and parent not in tree:
            where = ".".join(parents[: depth - 1])
            raise ConfigError(f"override {override!r}: {where} has no {parent!r}{nearest(parent, tree)}")
        annotation = _annotation_at(annotation, tree, parent)
        node = tree.setdefault(parent, {})
        if isinstance(node, str):  # a bare preset name; the override then changes one field of it
            node = tree[parent] = {"preset": node}
        if not isinstance(node, dict):
            where = ".".join(parents[:depth])
            # what is off with null is on with one of its settings
            fix = f" but null; write {where}={{{leaf}: {text}}}" if node is None and depth == len(parents) else ""
            raise ConfigError(f"override {override!r}: {where} is not a section{fix}")
        tree = node
    try:
        tree[leaf] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None


def _resolve_presets(annotation: Any, tree: Any, folder: Path) -> Any:
    """Replaces preset names by their files' content in a `tree` that will be read as `annotation`."""
    section = _section_in(annotation)
    if section is None:
        return tree
    if _has_items(annotation, tree):
        if isinstance(tree, dict):
            return {name: _resolve_presets(section, item, folder) for name, item in tree.items()}
        return [_resolve_presets(section, item, folder) for item in tree] if isinstance(tree, list) else tree
    if section.preset_folder and isinstance(tree, str):
        tree = {"preset": tree}
    if not isinstance(tree, dict):
        return tree
    if section.preset_folder and "preset" in tree:
        changes = {key: value for key, value in tree.items() if key != "preset"}
        tree = overlaid(section, _read_preset(section.preset_folder, str(tree["preset"]), folder), changes)
    return {key: _resolve_presets(_annotation_at(section, tree, key), value, folder) for key, value in tree.items()}


def _read_preset(group: str, name: str, folder: Path) -> dict[str, Any]:
    path = _find_preset(group, name, folder)
    tree = _read_yaml(path)
    if "preset" in tree:
        raise ConfigError(f"{path}: a preset names no other one; write its settings here")
    return tree


def _find_preset(group: str, name: str, folder: Path) -> Path:
    if "/" in name or name.startswith("."):
        raise ConfigError(
            f"preset {name!r}: a preset is a bare name, for a file {group}/NAME.yaml beside the config or above"
        )
    known: list[str] = []
    for parent in (folder, *folder.parents, *([] if OWN_PRESETS is None else [OWN_PRESETS])):
        if (parent / group / f"{name}.yaml").is_file():
            return parent / group / f"{name}.yaml"
        known += [p.stem for p in (parent / group).glob("*.yaml")]
    where = f"in {group}/ in {folder}, above it or among the package's own"
    raise ConfigError(f"no preset {name!r} {where}{nearest(name, dict.fromkeys(known))}")


def _annotation_at(annotation: Any, tree: Any, part: Any) -> Any:
    """The annotation of the value at key or index `part` of a `tree` read as `annotation`; None if there is none."""
    section = _section_in(annotation)
    if section is None or _has_items(annotation, tree):
        return section
    field = _fields(_variant(section, tree)).get(part)
    return None if field is None else field.annotation


def _variant(section: type[Section], tree: Any) -> type[Section]:
    """The class that reads `tree`; the section itself if the tree names none, which its validation reports."""
    try:
        return section.variant_of(tree) if isinstance(tree, Mapping) else section
    except ValueError:
        return section


def _fields(section: type[Section]) -> dict[str, FieldInfo]:
    """A section's fields by the names that they have in YAML."""
    return {str(field.validation_alias or name): field for name, field in section.model_fields.items()}


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that an annotation is, has as an option, or has as items of a list, a tuple or a mapping."""
    if _options(annotation):
        return next((section for section in map(_section_in, _options(annotation)) if section is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _has_items(annotation: Any, tree: Any) -> bool:
    """Whether a `tree` read as `annotation` is a list, a tuple or a mapping of sections."""
    section = _section_in(annotation)
    kinds = {get_origin(option) in CONTAINERS for option in _alternatives(annotation) if _section_in(option)}
    return section is not None and (is_named(section, tree) if kinds == {True, False} else kinds == {True})


def is_named(section: type[Section], tree: Any) -> bool:
    """Whether a `tree`, one section or several by name, is several: none of its keys is a setting."""
    if not isinstance(tree, Mapping) or not tree or {*_fields(section), "preset"} & tree.keys():
        return False
    return all(isinstance(item, Mapping | str | Section) for item in tree.values())


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation is its own only member."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, UnionType):
        return (annotation,)
    return tuple(inner for option in get_args(annotation) for inner in _alternatives(option))


def _options(annotation: Any) -> tuple[Any, ...]:
    """The types in an annotation: a union's, a container's, or the one that has metadata."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[:1]
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType, *CONTAINERS) else ()


def _explain(kind: type[Section], tree: Any, issue: Mapping[str, Any]) -> str:
    location = issue["loc"]
    name = ".".join(str(part) for part in location)
    if issue["type"] != "extra_forbidden":
        is_long = issue["type"] == "missing" or isinstance(issue["input"], dict)
        is_said = isinstance(issue.get("ctx", {}).get("error"), ConfigError)  # as far as it may be shown
        given = "" if is_long or is_said else f" (given: {issue['input']!r})"
        return f"{name or 'config'}: {issue['msg'].removeprefix('Value error, ')}{given}"
    annotation: Any = kind
    for part in location[:-1]:
        annotation, tree = _annotation_at(annotation, tree, part), tree[part]
    section = _section_in(annotation)
    assert section is not None, f"{name}: only sections reject settings"
    section = _variant(section, tree)
    known = [*_fields(section), *(["preset"] if section.preset_folder else [])]
    return f"{name}: no such setting{nearest(str(location[-1]), known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a "no such name" message: the nearest of the `known` names, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
