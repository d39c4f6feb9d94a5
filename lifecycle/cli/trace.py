"""`lifecycle trace`: the chain behind a version or an artifact, for people or for a program."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from lifecycle.cli.arguments import AsJson, ConfigPath, name_first, read_config
from lifecycle.cli.display import print_json
from lifecycle.core.artifact import MANIFEST, ArtifactError
from lifecycle.ops.lineage import Node, problems, render, trace_artifact, trace_version
from lifecycle.ops.registry import Registry
from lifecycle.stages.chain import fetch_finished, finished_stage
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph
from lifecycle.stages.names import PRODUCTION
from lifecycle.stages.storage import read_registry

type Traced = Annotated[
    str,
    Parameter(
        help="A version (alias, hash or its beginning; production if none is given), a stage, or the folder of an "
        "artifact; then settings, as key=value."
    ),
]
type Verify = Annotated[
    bool, Parameter(help="Read every file and compare it with its manifest; status 1 if one is missing or changed.")
]


def trace(config: ConfigPath, /, *words: Traced, verify: Verify = False, as_json: AsJson = False) -> None:
    """Prints the chain behind a version, a stage or an artifact's folder, down to the filters and the source files."""
    name, overrides = name_first(words)
    tree = _tree(read_config(config, overrides), name or PRODUCTION, verify)
    if as_json:
        print_json(tree)
    else:
        Console().print(render(tree))
    if verify and (found := list(problems(tree))):
        raise ArtifactError("; ".join(found))


def _tree(config: RunConfig, name: str, verify: bool) -> Node:
    read_registry(config)
    fetch_finished(config)
    if name in build_graph(config):
        return trace_artifact(finished_stage(config, name).path, verify)
    folder = config.folder / Path(name).name  # a folder's name, or its path as another command printed it
    if (folder / MANIFEST).is_file():
        return trace_artifact(folder, verify)
    return trace_version(Registry(config.registry_path), name, verify)
