"""Stage `register`: the bundle becomes a version; `candidate` moves to it, and `production` if the gate passes."""

import json
from pathlib import Path

from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.evals.results import read_results
from lifecycle.ops.gates import GateRefused, promote
from lifecycle.ops.registry import Registry
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import CANDIDATE, EVALUATE
from lifecycle.stages.origins import lineage
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.text.chat import read_template

WHO = "lifecycle"


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Registers the bundle with its evaluation, and promotes it if the gate passes."""
    registry = Registry(config.registry_path)
    evaluation = inputs.get(EVALUATE + config.exported)
    results = [] if evaluation is None else read_results(evaluation.path)
    version = registry.register(inputs["export"].path, _kind(config), results)
    registry.move(CANDIDATE, version.hash, who=WHO, why=f"run {config.name}")
    try:
        report, _ = promote(registry, version.hash, who=WHO, why=f"run {config.name}", config=config.gate)
        text, promoted = str(report), True
    except GateRefused as refused:
        text, promoted = str(refused), False
    progress.note(f"version {version.short}: {'promoted to production' if promoted else 'not promoted: ' + text}")
    stats = {"version": version.hash, "promoted": promoted, "gate": text}
    write_text(out / "registration.json", json.dumps(stats, indent=1))
    return Outcome(stats)


def _kind(config: RunConfig) -> str:
    """`chat` for weights trained on conversations, here or in the bundle that they originate from; else `base`."""
    rows = {kind for name in lineage(config.exported, config.starts) for kind in config.rows_of(name)}
    origin = config.origin_of(config.exported)
    has_turns = origin is not None and read_template(origin) is not None
    return "chat" if has_turns or rows & {"chat", "pairs"} else "base"
