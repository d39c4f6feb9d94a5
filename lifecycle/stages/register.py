"""Stage `registration`: the bundle becomes a version; `candidate` moves to it, and `production` if the gate passes."""

import json
from pathlib import Path

from lifecycle.core.artifact import Artifact, write_text
from lifecycle.core.progress import Progress
from lifecycle.evals.results import read_results
from lifecycle.ops.gates import GateRefused, promote
from lifecycle.ops.registry import Registry
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig

REGISTRY = "registry.db"
PRODUCTION = "production"
WHO = "lifecycle"


def open_registry(config: RunConfig) -> Registry:
    """The run's registry."""
    return Registry(config.folder / REGISTRY)


def is_candidate(config: RunConfig, registration: Artifact) -> bool:
    """Whether the registry still has this registration's version as its candidate: not after it was deleted, nor after
    another run of this folder has registered a version of its own."""
    if not (config.folder / REGISTRY).is_file():
        return False
    return open_registry(config).aliases().get("candidate") == registration.stats["version"]


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    registry = open_registry(config)
    version = registry.register(inputs["bundle"].path, "chat", read_results(inputs["evaluate-prefer"].path))
    registry.move("candidate", version.hash, who=WHO, why=f"run {config.name}")
    try:
        report, _ = promote(registry, version.hash, who=WHO, why=f"run {config.name}", config=config.gate)
        text, promoted = str(report), True
    except GateRefused as refused:
        text, promoted = str(refused), False
    progress.note(f"version {version.short}: {'promoted to production' if promoted else 'not promoted: ' + text}")
    stats = {"version": version.hash, "promoted": promoted, "gate": text}
    write_text(out / "registration.json", json.dumps(stats, indent=1))
    return Outcome(stats)
