"""Published models at addresses: copies of the files that an import reads, and no others.

In object storage a folder is listed; on the web the files have their usual names. An index names the files of the
weights.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError
from lifecycle.core.fetched import copied_tags, is_stored, local_copy, objects_at
from lifecycle.core.web import web_file, web_folder, web_tags
from lifecycle.core.web_address import WebAddress, is_on_web
from lifecycle.inference.defaults import GENERATION_FILE
from lifecycle.text.tokenizer import FILES
from lifecycle.weights.published import CONFIG
from lifecycle.weights.safetensors_files import INDEX, SUFFIX, WEIGHTS, weight_map

GGUF = ".gguf"
USUAL = (CONFIG, GENERATION_FILE, *FILES, INDEX)


@dataclass(frozen=True)
class Origin:
    """Where a model came from; of an address, the tags that name the versions of its files there."""

    source: str  # as it may be shown
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def recorded(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"source": self.source} | ({"tags": dict(self.tags)} if self.tags else {})


def published_at(place: str) -> tuple[Path, Origin | None]:
    """A published model's folder or GGUF file on this machine: its path, or the copy of what is at its address, with
    what is recorded of it.

    Raises `StoreError`; `ConfigError` for a folder with several GGUF files, `WeightsError` for an index that names
    other than safetensors files of its folder.
    """
    if is_on_web(place):
        return _on_web(place, WebAddress.of(place))
    return _in_store(place) if is_stored(place) else (Path(place), None)


def _on_web(place: str, address: WebAddress) -> tuple[Path, Origin]:
    if address.path.endswith(GGUF):
        return web_file(place), Origin(str(address), web_tags(place))
    folder = web_folder(place, USUAL)
    indexed = _indexed(folder, str(address))
    weights = indexed or {WEIGHTS}
    web_folder(place, sorted(weights), lambda name: name.endswith(SUFFIX))  # without those of an earlier version
    _require(indexed, {file.name for file in folder.iterdir()}, str(address))
    return folder, Origin(str(address), web_tags(place, {*USUAL, *weights}))


def _in_store(place: str) -> tuple[Path, Origin]:
    listed = objects_at(place)
    if listed.is_file:
        return local_copy(place), Origin(place, copied_tags(place))
    here = {name for name in listed.objects if "/" not in name}
    if CONFIG in here and _ending(here, SUFFIX):
        return _folder_in_store(place, here)
    files = _ending(here, GGUF)
    if len(files) > 1:
        raise ConfigError(f"{place}: {len(files)} GGUF files; give the address of one of them: {', '.join(files)}")
    folder = local_copy(place, lambda name: name in files)
    folder.mkdir(parents=True, exist_ok=True)  # nothing of a model is there
    return folder, Origin(place, _tags(place, files))


def _folder_in_store(place: str, here: set[str]) -> tuple[Path, Origin]:
    folder = local_copy(place, lambda name: name in USUAL)
    weights = _indexed(folder, place) or {WEIGHTS} & here or set(_ending(here, SUFFIX))
    _require(weights, here, place)
    local_copy(place, lambda name: name in weights)
    return folder, Origin(place, _tags(place, {*USUAL, *weights}))


def _ending(names: Iterable[str], suffix: str) -> list[str]:
    return sorted(name for name in names if name.endswith(suffix))


def _tags(place: str, names: Collection[str]) -> dict[str, str]:
    return {name: tag for name, tag in copied_tags(place).items() if name in names}


def _indexed(folder: Path, source: str) -> set[str]:
    """The weights' files that the folder's index names; none without an index."""
    index = folder / INDEX
    return set(weight_map(index, f"{source}/{INDEX}").values()) if index.is_file() else set()


def _require(weights: set[str], here: set[str], source: str) -> None:
    if missing := sorted(weights - here):
        raise ConfigError(
            f"{source}/{INDEX}: names {', '.join(missing)}, not to be found there; correct the address, or publish "
            "the model again"
        )
