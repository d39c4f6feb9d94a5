"""Sessions: the mesh, processes and hosts on which a stage was computed, recorded across kills and resumes.

A job may be resumed on another mesh from its checkpoint, and measured otherwise from there on. Each session adds a
record to a file in the stage's folder before its first step; the manifest has them all, each with its steps in the
final weights.
"""

import json
from pathlib import Path
from typing import Any

import jax

from lifecycle.core.distributed import host_names, is_writer
from lifecycle.core.files import write_text
from lifecycle.core.runlog import read_log
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.training.config import TrainConfig
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.run import TrainingRun

SESSIONS = "sessions.jsonl"


def session_on(mesh: MeshConfig) -> dict[str, Any]:
    """The mesh, processes and hosts of this job; every process of the job must call this."""
    return {"mesh": mesh.plain(), "processes": jax.process_count(), "hosts": host_names()}


class RecordSession(Hook):
    """Records this session, with its first step and the settings that change only how it computes and measures."""

    def __init__(self, mesh: MeshConfig, train: TrainConfig, model: ModelConfig) -> None:
        self.mesh = mesh
        own = {name: getattr(model, name) for name in sorted(model.HOW_COMPUTED | model.HOW_MEASURED)}
        recorded = train.HOW_COMPUTED | train.HOW_MEASURED
        self.settings = {name: value for name, value in train.plain().items() if name in recorded} | own

    def start(self, run: TrainingRun) -> None:
        """Adds the record to those of earlier sessions."""
        session = {"from_step": run.step, **session_on(self.mesh), **self.settings}
        if is_writer():
            path = run.job.out / SESSIONS
            write_text(path, "".join(json.dumps(record) + "\n" for record in (*read_log(path), session)))


def finished_sessions(out: Path, steps: int) -> list[dict[str, Any]]:
    """The sessions whose steps are in the final weights, each up to the first step of the next one.

    Empty for a process that does not write: the folder may already have its final name.
    """
    if not is_writer():
        return []
    sessions = list(read_log(out / SESSIONS))
    ends = [later["from_step"] for later in sessions[1:]] + [steps]
    return [how | {"to_step": end} for how, end in zip(sessions, ends, strict=True) if how["from_step"] < end]
