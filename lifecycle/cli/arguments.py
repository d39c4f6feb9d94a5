"""Arguments of the verbs: the run's file, settings as `key=value`, and an optional name before the settings."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from lifecycle.core.config import LARGEST_INT, ConfigError, load_config
from lifecycle.core.fetched import local_copy
from lifecycle.core.lease import is_owned_here
from lifecycle.core.runlog import METRICS
from lifecycle.core.store import Store, is_url
from lifecycle.core.timesheet import TIMES
from lifecycle.stages.config import RunConfig


def _place(kind: type, tokens: Sequence[Token]) -> Path:
    """A path as given; of an address in object storage, the local copy of what is there."""
    del kind
    (word,) = (token.value for token in tokens)
    return local_copy(word) if is_url(word) else Path(word)


type ConfigPath = Annotated[Path, Parameter(help="The run's YAML file.")]
type ConfigOrBundle = Annotated[
    Path, Parameter(help="The run's YAML file, or a bundle's folder or s3:// or gs:// address.", converter=_place)
]
type Bundle = Annotated[Path, Parameter(help="A bundle's folder, or its address.", converter=_place)]
type Overrides = Annotated[str, Parameter(help="Settings to change, as key=value: train.chat.steps=100")]
SEED = Number(gte=0, lte=LARGEST_INT)  # as settings have it
type AsJson = Annotated[bool, Parameter(name="json", help="Print JSON, for programs.")]
type StageOrOverrides = Annotated[
    str, Parameter(help="A training stage, if it is not the run's own choice; then settings, as key=value.")
]


WEIGHTS = (".gguf", ".safetensors")
YAML = (".yaml", ".yml")


def read_config(path: Path, overrides: tuple[str, ...]) -> RunConfig:
    """The run's config with the command line's overrides."""
    if path.suffix in WEIGHTS:
        raise ConfigError(f"{path} holds weights, not a run; make a bundle of them: lifecycle import {path} BUNDLE")
    return load_config(RunConfig, path, overrides)


def run_folder(run: Path, overrides: tuple[str, ...]) -> Path:
    """The folder of a run, given as that folder or as its YAML file with settings."""
    if run.suffix in YAML:
        return read_config(run, overrides).folder
    if overrides:
        raise ConfigError(f"{run} is a folder, so {overrides[0]} changes nothing; leave it out")
    return run


def logs_folder(run: str, overrides: tuple[str, ...]) -> Path:
    """A folder with the logs of a run's training stages, only to be read. It is the run's, given as for `run_folder` or
    by its address; for a run in a store that no process of this machine makes, it has copies of what is there."""
    if is_url(run):
        if overrides:
            raise ConfigError(f"{run} is an address, so {overrides[0]} changes nothing; leave it out")
        return _copied_logs(run)
    if Path(run).suffix in YAML:
        config = read_config(Path(run), overrides)
        if config.store_url is not None and not is_owned_here(Store(config.store_url)):
            return _copied_logs(config.store_url)
    return run_folder(Path(run), overrides)


def _copied_logs(url: str) -> Path:
    def is_log(name: str) -> bool:
        return name.count("/") == 1 and name.rpartition("/")[2] in (METRICS, TIMES)

    folder = local_copy(url, is_log)
    folder.mkdir(parents=True, exist_ok=True)  # no stage has begun
    return folder


def name_first(words: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Returns (the leading name, or None if the first word is a setting; the settings)."""
    if words and "=" not in words[0]:
        return words[0], words[1:]
    return None, words


def operator() -> str:
    """The user's name, for an alias's history; a container's user may have none."""
    return os.environ.get("USER") or f"uid {os.getuid()}"
