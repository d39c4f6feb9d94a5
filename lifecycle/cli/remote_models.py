"""Published models at addresses: copies of the files that an import reads, and no others.

In object storage a folder is listed; on the web the files have their usual names, and the index names those of the
weights.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from lifecycle.core.config import ConfigError, read_json
from lifecycle.core.fetched import is_stored, local_copy
from lifecycle.core.web import is_on_web, web_file, web_folder
from lifecycle.inference.defaults import GENERATION_FILE
from lifecycle.text.tokenizer import FILES
from lifecycle.weights.published import CONFIG
from lifecycle.weights.safetensors_files import INDEX, WEIGHTS

GGUF = ".gguf"
USUAL = (CONFIG, GENERATION_FILE, *FILES, INDEX)


def published_at(place: str) -> Path:
    """A published model's folder or GGUF file on this machine: its path, or the copy of what is at its address. Raises
    `StoreError`, `ConfigError` for an index that names files elsewhere."""
    if is_on_web(place):
        return web_file(place) if urlsplit(place).path.endswith(GGUF) else _folder_on_web(place)
    return local_copy(place, _is_read) if is_stored(place) else Path(place)


def _is_read(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, usual) for usual in (*USUAL, "*.safetensors", f"*{GGUF}"))


def _folder_on_web(url: str) -> Path:
    folder = web_folder(url, USUAL)
    weights = {WEIGHTS}
    if (folder / INDEX).is_file():
        weights = set(map(str, read_json(folder / INDEX).get("weight_map", {}).values()))
    if elsewhere := next((name for name in weights if Path(name).name != name), None):
        raise ConfigError(f"{url}/{INDEX}: names {elsewhere!r}, which is not a file of its folder")
    for left in folder.glob("*.safetensors"):  # by an earlier version of the model
        if left.name not in weights:
            left.unlink()
    return web_folder(url, sorted(weights))
