"""Typed configuration: YAML in, one frozen tree out.

A run file is YAML. Every section is a `Section`: frozen, and an unknown key is an error that names the nearest known
one. A section with a `preset_folder` may name a preset, a YAML file in that folder beside the run file or in a parent
of it: `model: llama3_8b`, or `model: {preset: llama3_8b, max_seq_len: 4096}`. The command line overrides scalars by
dotted name (`pretrain.steps=10`). There is no other inheritance.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where and how to mend it."""


class Section(BaseModel):
    """A frozen part of the configuration tree; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    preset_folder: ClassVar[str | None] = None

    def plain(self) -> dict[str, Any]:
        """The section as JSON-ready data, for manifests and hashes."""
        return self.model_dump(mode="json")


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
        _override(tree, override)
    tree = _resolve_presets(kind, tree, path.resolve().parent)
    return validate(kind, tree, where=str(path))


def validate[S: Section](kind: type[S], tree: Mapping[str, Any], where: str = "config") -> S:
    """Builds `kind` from plain data; turns pydantic's errors into one `ConfigError`."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(kind, issue) for issue in error.errors()]
        raise ConfigError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def read_json(path: Path, error: type[ValueError] = ConfigError, mend: str = "copy it again") -> dict[str, Any]:
    """A JSON file that holds a mapping; raises `error`, with what to do, where it is damaged or something else."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as issue:
        raise error(f"{path}: not valid JSON: {issue}; {mend}") from None
    if not isinstance(tree, dict):
        raise error(f"{path}: expected a mapping, found {type(tree).__name__}; {mend}")
    return tree


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"override {override!r}: expected key=value, for example pretrain.steps=100")
    *parents, leaf = name.split(".")
    for depth, parent in enumerate(parents, 1):
        node = tree.setdefault(parent, {})
        if isinstance(node, str):  # a bare preset name; the override then changes one field of it
            node = tree[parent] = {"preset": node}
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parents[:depth])} is not a section")
        tree = node
    try:
        tree[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None


def _resolve_presets(kind: type[Section], tree: Any, folder: Path) -> Any:
    """Replaces preset names by their files' content, sections below included."""
    if kind.preset_folder and isinstance(tree, str):
        tree = {"preset": tree}
    if not isinstance(tree, dict):
        return tree
    if kind.preset_folder and "preset" in tree:
        changes = {key: value for key, value in tree.items() if key != "preset"}
        tree = _read_yaml(_find_preset(kind.preset_folder, str(tree["preset"]), folder)) | changes
    return {key: _resolve_field(kind, key, value, folder) for key, value in tree.items()}


def _resolve_field(kind: type[Section], key: str, value: Any, folder: Path) -> Any:
    section = _section_of(kind, key)
    if section is None:
        return value
    if isinstance(value, list):
        return [_resolve_presets(section, item, folder) for item in value]
    return _resolve_presets(section, value, folder)


def _find_preset(group: str, name: str, folder: Path) -> Path:
    if "/" in name or name.startswith("."):
        raise ConfigError(f"preset {name!r}: a preset is a bare name, a file {group}/NAME.yaml beside the config")
    known: list[str] = []
    for parent in (folder, *folder.parents):
        if (parent / group / f"{name}.yaml").is_file():
            return parent / group / f"{name}.yaml"
        known += [p.stem for p in (parent / group).glob("*.yaml")]
    raise ConfigError(f"no preset {name!r} in {group}/ beside {folder} or above it{_nearest(name, known)}")


def _section_of(kind: type[Section], key: str) -> type[Section] | None:
    field = kind.model_fields.get(key)
    return _section_in(field.annotation) if field is not None else None


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that an annotation is, has as an option, or has as items of a list or tuple."""
    if get_origin(annotation) in (Union, UnionType, list, tuple):
        return next((found for found in map(_section_in, get_args(annotation)) if found is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _explain(kind: type[Section], issue: Mapping[str, Any]) -> str:
    location = [str(part) for part in issue["loc"]]
    name = ".".join(location)
    if issue["type"] != "extra_forbidden":
        is_section = issue["type"] == "missing" or isinstance(issue["input"], dict)  # too long to be shown
        given = "" if is_section else f" (given: {issue['input']!r})"
        return f"{name or 'config'}: {issue['msg'].removeprefix('Value error, ')}{given}"
    owner: type[Section] | None = kind
    for part in location[:-1]:
        if owner is not None and not part.isdigit():
            owner = _section_of(owner, part)
    known = list(owner.model_fields) if owner else []
    return f"{name}: no such setting{_nearest(location[-1], known)}"


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
