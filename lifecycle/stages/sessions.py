"""On which mesh, processes and hosts a stage was computed: a record for each session, kept through kills.

A job may come back on another mesh and go on from its checkpoint. Each session adds a line to a file in the stage's
folder before it begins; the manifest has them all, with the steps that are theirs in the final weights.
"""

import json
from pathlib import Path
from typing import Any

import jax

from lifecycle.core.distributed import host_names, is_writer
from lifecycle.core.runlog import read_log
from lifecycle.parallel.axes import MeshConfig

SESSIONS = "sessions.jsonl"


def session(mesh: MeshConfig) -> dict[str, Any]:
    """How this process and the others of its job compute; all of them call it alike."""
    return {"mesh": mesh.plain(), "processes": jax.process_count(), "hosts": host_names()}


def begin_session(out: Path, from_step: int, **how: Any) -> None:
    """Adds this session, which goes on from `from_step`, to the folder's."""
    if is_writer():
        with open(out / SESSIONS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"from_step": from_step, **how}) + "\n")


def finished_sessions(out: Path, steps: int) -> list[dict[str, Any]]:
    """The sessions whose steps are in the final weights: each up to where the next one went on from.

    None for a process that does not write: the folder may have its final name already.
    """
    if not is_writer():
        return []
    sessions = list(read_log(out / SESSIONS))
    ends = [later["from_step"] for later in sessions[1:]] + [steps]
    return [how | {"to_step": end} for how, end in zip(sessions, ends, strict=True) if how["from_step"] < end]
