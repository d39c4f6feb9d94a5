"""Which of a run's checkpoints stay.

A pure rule over their steps and what was measured at them. What must hold: the newest always stays, and a checkpoint
that is not wanted any more leaves in one rename, so that a kill while its files are deleted leaves no half checkpoint.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.integrity import steps_in

META = "meta"  # the item of a step with its facts
MEASURED = "heldout"  # its entry: what was measured on held-out data at this step
DELETED = ".deleted"  # appended to the name of a folder whose files are being deleted


def kept_steps(measured: Mapping[int, Mapping[str, float]], settings: CheckpointConfig) -> set[int]:
    """The steps that stay, given what was measured at each: the last `keep`, the multiples of `keep_every`, the
    newest that was due by steps (`faults.policy=rollback` goes back to it), and the best by `best`: of finite values,
    and the later of two that are as good."""
    steps = sorted(measured)
    due = [step for step in steps if step % settings.every == 0]
    kept = {*steps[-settings.keep :], *due[-1:]}
    if settings.keep_every is not None:
        kept |= {step for step in steps if step % settings.keep_every == 0}
    if settings.best is not None:
        sign = 1 if settings.best_is == "highest" else -1
        values = {step: sign * measured[step].get(settings.best, math.nan) for step in steps}
        values = {step: value for step, value in values.items() if math.isfinite(value)}
        kept |= {max(values, key=lambda step: (values[step], step))} if values else set()
    return kept


def delete_unwanted(folder: Path, settings: CheckpointConfig) -> None:
    """Deletes the checkpoints that do not stay."""
    steps = steps_in(folder)
    read = settings.best is not None
    measured = {step: _measured(folder / str(step)) if read else {} for step in steps}
    delete_steps(folder, sorted(measured.keys() - kept_steps(measured, settings)))


def delete_steps(folder: Path, steps: Iterable[int]) -> None:
    """Deletes the checkpoints of these steps."""
    for step in steps:
        (folder / str(step)).rename(folder / f"{step}{DELETED}")
    delete_renamed(folder)


def delete_renamed(folder: Path) -> None:
    """Deletes what was renamed to be deleted, also by a process that was killed then. What cannot be deleted now, such
    as a file on NFS that another host still reads, stays until this is called again."""
    for path in folder.glob(f"*{DELETED}"):
        shutil.rmtree(path, ignore_errors=True)


def require_deleted(folder: Path) -> None:
    """Raises `OSError` if something stayed that was renamed to be deleted."""
    if left := sorted(path.name for path in folder.glob(f"*{DELETED}")):
        raise OSError(f"{folder}: {', '.join(left)} cannot be deleted")


def _measured(path: Path) -> dict[str, float]:
    """What was measured at a step; nothing if its facts are damaged, which is told when it is to be read."""
    try:
        return json.loads((path / META / "metadata").read_text(encoding="utf-8")).get(MEASURED, {})
    except (FileNotFoundError, ValueError, AttributeError):
        return {}
