"""Scores a bundle on tasks outside any run: one that was exported, imported, or made by another tool.

The results are an artifact, keyed by the bundle's content, the tasks and their rows, so an evaluation runs once. What
must hold: a bundle gets the scores that the same weights get inside a run with the same context.
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from lifecycle.core.artifact import Artifact, ArtifactError, Draft, intact_hash, open_artifact
from lifecycle.core.progress import Progress
from lifecycle.evals.config import EvalConfig
from lifecycle.evals.evaluation import evaluate
from lifecycle.evals.model import open_bundle
from lifecycle.evals.rows import local_rows, task_settings
from lifecycle.model.config import WeightFormat
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh

STAGE = "evaluation"


class BundleTasksConfig(EvalConfig):
    """A file of tasks, in the form of a run file's `evaluate` section; `root` is the folder of the results."""

    root: Path = Path("runs/evaluations")
    mesh: MeshConfig = MeshConfig()  # the devices that hold the model
    weights: WeightFormat | None = None  # score what `serve.weights` of that format serves
    max_seq_len: int = Field(default=2048, gt=1)  # the context, at most the model's; the KV cache has this length


def score_bundle(config: BundleTasksConfig, bundle: Path, progress: Progress) -> Artifact:
    """The results' artifact: a finished one with the same key, else a new one.

    Raises `ConfigError` for invalid tasks, and what `load_bundle` raises for a folder that is not a bundle.
    """
    rows = local_rows(config)
    tasks = [task_settings(task) for task in config.tasks]
    settings: dict[str, Any] = config.plain() | {"tasks": tasks, "bundle": intact_hash(bundle), "rows": rows}
    del settings["root"], settings["mesh"]  # neither changes a score
    if config.weights is None:
        del settings["weights"]  # the key of results from before there was a choice
    draft = Draft(config.root, STAGE, settings, {})
    try:
        return open_artifact(draft.final_path)
    except ArtifactError:  # not made yet, or damaged
        pass
    subject = open_bundle(bundle, config.max_seq_len, build_mesh(config.mesh), config.weights)
    out = draft.open()
    return draft.commit({"tasks": evaluate(config, {}, subject, out, progress)})
