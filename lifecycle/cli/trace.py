"""`lifecycle trace`: the chain behind a version, for people or for a program."""

import json
import sys
from pathlib import Path

from rich.console import Console

from lifecycle.core.artifact import MANIFEST
from lifecycle.ops.lineage import render, trace_artifact, trace_version
from lifecycle.stages.config import RunConfig
from lifecycle.stages.register import open_registry


def show_trace(config: RunConfig, version: str, as_json: bool) -> None:
    """Prints the chain of an alias, a version's hash or the beginning of one, or of an artifact's folder."""
    folder = config.folder / Path(version).name  # a name without a slash, or a path as another command printed it
    is_folder = (folder / MANIFEST).is_file()
    tree = trace_artifact(folder) if is_folder else trace_version(open_registry(config), version)
    if as_json:
        json.dump(tree, sys.stdout, indent=1, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        Console().print(render(tree))
