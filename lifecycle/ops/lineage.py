"""Lineage: from a registered version or an artifact back to its settings and source files.

Walks the manifests by the recorded folder names and checks each: an input that is missing, damaged or has changed since
is marked, with the recorded hash, and the walk continues elsewhere. The tree is plain data (JSON-ready); `render` draws
it. An artifact with several consumers is expanded at its first occurrence.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from lifecycle.core.artifact import MANIFEST, READ_FROM, Artifact, ArtifactError, open_artifact, require_intact
from lifecycle.core.config import digest
from lifecycle.core.config_changes import said
from lifecycle.data.documents import file_of
from lifecycle.ops.registry import SHOWN_HASH, Registry

WHOLE = ("present", "verified")
SHOWN_FILES = 5  # per source, when drawn; the tree has them all
SHOWN_FAULTS = 5  # of a training stage
type Node = dict[str, Any]


def trace_version(registry: Registry, name: str, verify: bool = False) -> Node:
    """A version (by alias, hash or prefix): its promotion and evaluations, and the chain of its bundle.

    `verify` reads every file of the chain and compares it with its manifest.
    """
    version = registry.resolve(name)
    history = [vars(move) for move in registry.history(name)]
    evaluations = {
        task: result.model_dump(exclude={"examples"}) for task, result in registry.evaluations(version.hash).items()
    }
    return {
        "name": name,
        "version": version.hash,
        "kind": version.kind,
        "registered": version.registered,
        "history": history,
        "evaluations": evaluations,
        "chain": _Walk(verify).node(version.path, version.hash, version.manifest.stage),
    }


def trace_artifact(path: Path, verify: bool = False) -> Node:
    """The chain of an artifact; raises `ArtifactError` if there is none at `path`. `verify` as in `trace_version`."""
    artifact = open_artifact(path)
    return _Walk(verify).node(path, artifact.content_hash, artifact.manifest.stage)


def problems(node: Node) -> Iterator[str]:
    """What a traced tree has to say of missing, changed and damaged artifacts."""
    tree = node.get("chain", node)
    if tree["problem"]:
        yield tree["problem"]
    for child in tree["inputs"].values():
        yield from problems(child)


class _Walk:
    """One walk over a chain; an artifact that it meets again is not expanded."""

    def __init__(self, verify: bool) -> None:
        self._verify = verify
        self._met: set[Path] = set()

    def node(self, path: Path, recorded: str, stage: str, is_outside: bool = False) -> Node:
        """The node of the artifact at `path`, recorded by its consumer with the content hash `recorded`.

        `is_outside`: the node is a bundle that the run started from, not an artifact of the run.
        """
        node: Node = {"stage": stage, "path": str(path), "content_hash": recorded}
        if not path.exists():
            return node | {"state": "missing", "problem": f"{path} is gone", "inputs": {}}
        if is_outside and not (path / MANIFEST).is_file():
            return node | {"state": "no manifest", "problem": "", "inputs": {}}  # a bundle made by another tool
        is_new = path.resolve() not in self._met
        try:
            artifact = open_artifact(path)
            if self._verify and is_new:
                require_intact(artifact)
        except ArtifactError as error:
            return node | {"state": "damaged", "problem": str(error), "inputs": {}}
        if artifact.content_hash != recorded:
            problem = f"its content is now {artifact.content_hash}; it was made again after its use"
            return node | {"state": "changed", "problem": problem, "inputs": {}}
        if not is_new:
            return node | {"state": "shown above", "problem": "", "inputs": {}}
        self._met.add(path.resolve())
        state = {"state": "verified" if self._verify else "present", "problem": ""}
        return node | state | _facts(artifact) | {"inputs": self._inputs(path, artifact)}

    def _inputs(self, path: Path, artifact: Artifact) -> dict[str, Node]:
        hashes = artifact.manifest.input_hashes
        return {
            name: self.node(path.parent / folder, hashes[name], name, Path(folder).is_absolute())
            for name, folder in artifact.manifest.inputs.items()
        }


def _facts(artifact: Artifact) -> Node:
    manifest = artifact.manifest
    facts: Node = manifest.model_dump(include={"key", "created", "code", "wall_s", "cpu_s", "config", "stats"})
    return facts | {"source_files": source_files(artifact.path)}


def source_files(folder: Path) -> dict[str, Node]:
    """The files of each source behind a documents artifact, with a hash over their paths; empty for other artifacts.

    Includes files whose documents were all removed by the filters: the artifact keeps removed rows.
    """
    files: dict[str, set[str]] = defaultdict(set)
    for table in sorted(folder.glob("*.parquet")):
        if {"source", "path"} <= set(pq.read_schema(table).names):
            columns = pq.read_table(table, columns=["source", "path"])
            for row in columns.group_by(["source", "path"]).aggregate([]).to_pylist():
                files[row["source"]].add(file_of(row["path"]))
    return {
        source: {"count": len(paths), "paths_hash": digest(sorted(paths)), "paths": sorted(paths)}
        for source, paths in sorted(files.items())
    }


def render(node: Node) -> RenderableType:
    """Draws a tree that `trace_version` or `trace_artifact` returned."""
    if "chain" not in node:
        return _draw(node, None)
    title = Text.assemble((node["name"], "bold"), f" is version {node['version']}, a {node['kind']} model")
    lines = [Text(f"registered {node['registered']}")]
    for move in node["history"]:
        step = f"{move['action']} to {move['target'][:SHOWN_HASH]}"
        lines.append(Text(f"{move['at']} {step} by {move['who']}: {move['why']}"))
    for result in node["evaluations"].values():
        interval = f"{result['mean']:.4f} [{result['low']:.4f}, {result['high']:.4f}], n={result['n']}"
        lines.append(Text(f"{result['task']}: {result['metric']} {interval}"))
    return Group(title, *lines, _draw(node["chain"], None))


def _draw(node: Node, parent: Tree | None) -> Tree:
    label = Text.assemble((node["stage"], "bold cyan"), f" {node['content_hash'][:SHOWN_HASH]}")
    if node["state"] not in WHOLE:
        label.append(f" ({node['state']})", "dim" if node["state"] in ("shown above", "no manifest") else "bold red")
    else:
        label.append(
            f"  key {node['key'][:SHOWN_HASH]}, {node['created']}, {node['cpu_s']:.1f} core-s, code {node['code']}"
        )
        if node["state"] == "verified":
            label.append("  verified", "green")
    tree = Tree(label) if parent is None else parent.add(label)
    if node["problem"]:
        tree.add(Text(node["problem"], "red"))
    if node["state"] in WHOLE and (node["source_files"] or not node["inputs"]):  # where the data came from
        for name, value in _flatten(node["config"]):
            tree.add(Text(f"{name} = {value}", "green"))
        for source, files in node["source_files"].items():
            tree.add(_files_line(source, files))
    for place in node.get("stats", {}).get(READ_FROM, []):
        tree.add(Text(f"read from {place}", "green"))
    if (goes_on := node.get("stats", {}).get("goes_on")) is not None:
        tree.add(Text(_change_line(goes_on), "yellow"))
    for line in _fault_lines(node.get("stats", {}).get("faults", [])):
        tree.add(Text(line, "yellow"))
    for child in node["inputs"].values():
        _draw(child, tree)
    return tree


def _change_line(goes_on: Node) -> str:
    """Which run a training stage goes on from, and what changed there."""
    return f"after step {goes_on['step']} of {goes_on['stage']}: {said(goes_on['settings'])}"


def _fault_lines(faults: Sequence[Node]) -> Iterator[str]:
    """What a training stage did about its faulty steps, and which batches it passed over."""
    for fault in faults[:SHOWN_FAULTS]:
        passed = fault.get("passed_over")
        done = f"went back, passing over batches {passed[0]} to {passed[1]}" if passed else fault["action"]
        yield f"step {fault.get('from_step', fault['step'])}: {fault['fault']}; {done}"
    if len(faults) > SHOWN_FAULTS:
        yield f"and {len(faults) - SHOWN_FAULTS} more faulty steps"


def _files_line(source: str, files: Node) -> Text:
    shown = ", ".join(files["paths"][:SHOWN_FILES])
    more = f" and {files['count'] - SHOWN_FILES} more" if files["count"] > SHOWN_FILES else ""
    return Text(
        f"source {source}: {files['count']} files, paths hash {files['paths_hash'][:SHOWN_HASH]}: {shown}{more}"
    )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields a tree of settings as (dotted name, value)."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
