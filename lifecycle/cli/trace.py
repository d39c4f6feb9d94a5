"""`lifecycle trace`: the chain behind a version or an artifact, for people or for a program."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import AsJson, ConfigPath, name_first, read_config
from lifecycle.cli.display import print_json
from lifecycle.cli.documents import CorpusName
from lifecycle.cli.terminal import terminal
from lifecycle.core.artifact import MANIFEST, ArtifactError
from lifecycle.core.config import ConfigError
from lifecycle.ops.lineage import Node, problems, render, trace_artifact, trace_version
from lifecycle.ops.registry import SHOWN_HASH, Registry
from lifecycle.ops.sightings import sightings
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


type Document = Annotated[
    str | None,
    Parameter(
        help="A document, by its id, the hash of its content, its address, path or source:path: print which stages and "
        "versions were made with it."
    ),
]


type PassageText = Annotated[
    str | None,
    Parameter(
        allow_leading_hyphen=True,
        help="A text, such as a model's answer; - reads it from standard input. Print its passages of eight words or "
        "more that the documents behind the version have word for word (without a version: the config's documents), "
        "and those documents. The first time it makes an index of them, which stays beside them.",
    ),
]


def trace(
    config: ConfigPath, /, *words: Traced, verify: Verify = False, document: Document = None, text: PassageText = None,
    corpus: CorpusName = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Prints the chain behind a version, a stage or an artifact's folder, down to the filters and the source files; or
    the models that a document went into; or the documents that have passages of a text."""
    name, overrides = name_first(words)
    if text is not None:
        from lifecycle.cli.trace_text import trace_text  # compiled loops take a third of a second

        if document is not None:
            raise ConfigError("--text and --document ask different questions; give one of them")
        run = read_config(config, overrides)
        trace_text(run, None if name is None else _tree(run, name, verify), text, corpus, as_json)
        return
    if corpus is not None:
        raise ConfigError("--corpus says in which documents --text is looked for; give both, or neither")
    if document is not None:
        _print_sightings(read_config(config, overrides), document, as_json)
        return
    tree = _tree(read_config(config, overrides), name or PRODUCTION, verify)
    if as_json:
        print_json(tree)
    else:
        terminal().print(render(tree))
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


def _print_sightings(config: RunConfig, document: str, as_json: bool) -> None:
    read_registry(config)
    fetch_finished(config)
    registry = Registry(config.registry_path) if config.registry_path.is_file() else None
    found = sightings(config.folder, registry, document)
    if not found:
        raise ConfigError(
            f"no documents in {config.folder} have {document!r}, or it was removed from all of them; `lifecycle data "
            "why` says by which step"
        )
    rows = [
        {
            "id": seen.document, "document": seen.name, "split": seen.split, "documents": seen.documents.name,
            "stages": [made.path.name for made in seen.made], "versions": [version.hash for version in seen.versions],
        }
        for seen in found
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    for row in rows:
        versions = ", ".join(version[:SHOWN_HASH] for version in row["versions"]) or "none"
        print(f"{row['id']}  {row['document']}: {row['split']} in {row['documents']}")
        print(f"  made with it: {', '.join(row['stages']) or 'nothing yet'}")
        print(f"  registered versions: {versions}")
