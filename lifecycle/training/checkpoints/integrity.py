"""Integrity of checkpoints: every file's size and SHA-256.

A complete folder gets `files.json` before it is renamed to its final name. What must hold: a damaged checkpoint is
never used, and never keeps a run from resuming from an older one.
"""

import itertools
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lifecycle.core.file_hashes import file_hashes
from lifecycle.core.files import FILES, write_text
from lifecycle.core.progress import Progress
from lifecycle.core.shared_folder import is_apart, is_seen
from lifecycle.training.checkpoints.agreement import from_first, sync

# Not in the list: itself, and the file into which Orbax writes its times after the rename (reading does not need it).
UNLISTED = (FILES, "_CHECKPOINT_METADATA")
SHOWN_S = 60.0  # NFS shows another host's rename after at most this time, unless mounted otherwise (nfs(5), acdirmax)
DAMAGED = ".damaged"  # appended to a damaged checkpoint's folder name


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another model, or could not be written."""


def steps_in(folder: Path) -> list[int]:
    """Steps whose folder was renamed to its final name, ascending; not a copy of one by another name, such as `007`."""
    names = (path.name for path in folder.glob("*/") if path.name.isdecimal())
    return sorted(int(name) for name in names if name == str(int(name)))


def write_files(path: Path) -> None:
    """Adds the list of a complete folder's files: relative name -> [bytes, SHA-256]."""
    names = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
    hashes = file_hashes(path, [name for name in names if Path(name).name not in UNLISTED])
    files = {name: [(path / name).stat().st_size, sha256] for name, sha256 in hashes.items()}
    write_text(path / FILES, json.dumps(files, indent=1))


type Read = Callable[[Collection[str]], str]  # from the names of a checkpoint's files to the item that is read


def files_in(path: Path) -> dict[str, tuple[int, str]] | None:
    """Each file's size and SHA-256 by name, as a checkpoint's list has them; None if that is none."""
    try:
        listed: Any = json.loads((path / FILES).read_text(encoding="utf-8"))
        return {name: (int(size), str(sha256)) for name, (size, sha256) in listed.items()}
    except (ValueError, TypeError, AttributeError):
        return None


def damage(path: Path, part: int = 0, parts: int = 1, read: Read | None = None) -> str | None:
    """Says what is wrong with a checkpoint's folder; None if it is intact. With `parts`, hashes that part of it; with
    `read`, looks at one item only."""
    if not path.is_dir():
        return "no such checkpoint"
    if not (path / FILES).is_file():
        return f"no {FILES}"
    if (expected := files_in(path)) is None:
        return f"{FILES} is not a list of files"
    if read is not None:
        item = read(expected)
        expected = {name: facts for name, facts in expected.items() if name.startswith(f"{item}/")}
    for name, (size, _) in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (found := (path / name).stat().st_size) != size:
            return f"{name} has {found} bytes of {size}"
    hashes = file_hashes(path, list(expected)[part::parts])
    changed = (name for name, sha256 in hashes.items() if expected[name][1] != sha256)
    return next((f"{name} has changed" for name in changed), None)


def damage_seen_by_any(path: Path, read: Read | None = None) -> str | None:
    """As `damage`, of all processes of the job: each hashes a part of the files, or those of its own folder."""
    part, parts = (0, 1) if is_apart() else (jax.process_index(), jax.process_count())
    return from_first(damage(path, part, parts, read))


def steps_seen_by_first(folder: Path) -> list[int]:
    """As `steps_in`, what process 0 sees, in all processes of the job. Each waits until it sees the newest: one that
    went on from another step than the others would neither fail nor be noticed."""
    steps = from_first(steps_in(folder)) or []
    if steps:
        is_seen(folder / str(steps[-1]), SHOWN_S)
    return steps


@dataclass(frozen=True)
class View:
    """How folders of checkpoints are seen: their steps, and a checkpoint's damage."""

    steps: Callable[[Path], list[int]]
    damage: Callable[[Path, Read | None], str | None]


ALONE = View(steps_in, lambda path, read: damage(path, read=read))  # by this process
TOGETHER = View(steps_seen_by_first, damage_seen_by_any)  # by all of the job, which make the same calls and agree


def require_intact(path: Path, view: View, read: Read | None = None) -> None:
    """Raises `CheckpointError` for a checkpoint that is missing or damaged, or whose item that is read is."""
    if (reason := view.damage(path, read)) is not None:
        raise CheckpointError(f"{path}: {reason}; use another step or start a new run")


def intact_step(folder: Path, step: int | None, view: View, read: Read | None = None) -> Path:
    """The folder of a step, by default of the newest intact one; raises `CheckpointError` if it is damaged or
    missing. With `read` that is said of one item."""
    folder = folder.absolute()
    step = _newest_intact(folder, {}, view, read) if step is None else step
    if step is None:
        raise CheckpointError(f"{folder}: no checkpoint here")
    require_intact(folder / str(step), view, read)
    return folder / str(step)


def _newest_intact(folder: Path, damaged: dict[int, str], view: View, read: Read | None = None) -> int | None:
    """The newest intact step, None if there is no step; newer ones go to `damaged` with the reason.

    Raises `CheckpointError` if there are steps and none is intact.
    """
    steps = view.steps(folder)
    for step in reversed(steps):
        if (reason := view.damage(folder / str(step), read)) is None:
            return step
        damaged[step] = reason
    if not steps:
        return None
    listed = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise CheckpointError(f"{folder}: every checkpoint is damaged ({listed}); delete the folder to start over")


def rename_damaged(folder: Path, progress: Progress) -> None:
    """Renames damaged checkpoints newer than the newest intact one, so that a run can save those steps again."""
    damaged: dict[int, str] = {}
    newest = _newest_intact(folder, damaged, TOGETHER)
    sync("checkpoints read")
    for step, reason in damaged.items():
        if jax.process_index() == 0:
            (folder / str(step)).rename(aside(folder, step))
        progress.note(f"{folder / str(step)}: damaged ({reason}); resuming from step {newest}")
    sync("damaged checkpoints renamed")


def aside(folder: Path, name: int | str) -> Path:
    """A free name for a damaged checkpoint, which nothing ever deletes: it may have been damaged before."""
    names = itertools.chain([f"{name}{DAMAGED}"], (f"{name}{DAMAGED}-{n}" for n in itertools.count(2)))
    return next(folder / name for name in names if not (folder / name).exists())
