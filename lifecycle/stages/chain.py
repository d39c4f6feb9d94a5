"""The chain: runs a graph. It finds finished artifacts, makes missing ones, and admits one job at a time to a run's
folder.

A stage runs only if no finished artifact has its key, the hash of its config and of its inputs' contents. Before it
runs, the contents of its inputs are compared with their manifests. In a job of several processes, stages that use all
devices run on all of them; everything else runs on the first process, and the others wait for its artifact.
"""

import fcntl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lifecycle.core.artifact import (
    MANIFEST,
    Artifact,
    ArtifactError,
    Draft,
    changed_files,
    open_artifact,
    reopen,
    require_intact,
)
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import from_writer, is_writer
from lifecycle.core.file_hashes import FileHashes
from lifecycle.core.progress import Progress
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, needed
from lifecycle.stages.stage import Inputs, Stage

POLL_S = 0.5  # how often a process checks for another one's artifact


@dataclass(frozen=True)
class StageState:
    """A stage, its draft (None while an input is missing) and its artifact (None: not finished)."""

    stage: Stage
    draft: Draft | None
    artifact: Artifact | None


def states(config: RunConfig, targets: Iterable[str]) -> list[StageState]:
    """The states of the targets and of the stages that they need; runs nothing."""
    done: dict[str, Artifact] = {}
    result = []
    for stage in needed(build_graph(config), targets):
        draft = _draft(config, stage, done) if all(name in done for name in stage.inputs) else None
        artifact = _finished(config, stage, draft) if draft is not None else None
        if artifact is not None:
            done[stage.name] = artifact
        result.append(StageState(stage, draft, artifact))
    return result


def finished_stage(config: RunConfig, name: str) -> Artifact:
    """The finished artifact of a stage; raises `ConfigError` if the current config has none."""
    artifact = states(config, (name,))[-1].artifact
    if artifact is None:
        raise ConfigError(f"{config.folder}: stage {name} is not finished; run: lifecycle run CONFIG --until {name}")
    return artifact


def bring_up_to_date(
    config: RunConfig, targets: Iterable[str], progress: Progress, prepare: Callable[[], None] = lambda: None
) -> dict[str, Artifact]:
    """Makes the missing artifacts of the targets and of the stages that they need; returns all of them by stage.

    `prepare` is called once, before the first stage that runs, if any does.
    """
    stages = needed(build_graph(config), targets)
    config.folder.mkdir(parents=True, exist_ok=True)
    done: dict[str, Artifact] = {}
    is_prepared = False
    with _locked(config.folder):
        while len(done) < len(stages):
            stage = stages[len(done)]
            draft = _draft(config, stage, done)
            artifact = _finished(config, stage, draft, progress)
            if artifact is None:
                if not is_prepared:
                    prepare()
                    _check_job(config, stages[len(done) :])
                    is_prepared = True
                if _has_damaged_inputs(draft, progress):
                    done.clear()  # they are made again, and perhaps with other content
                    continue
                artifact = _make(config, stage, draft, done, progress)
            done[stage.name] = artifact
    return done


def _has_damaged_inputs(draft: Draft, progress: Progress) -> bool:
    """Whether an input's content is not the one that its manifest records; such an artifact becomes a draft again, with
    the files that are intact, so that training continues from a checkpoint. All processes get the same answer.

    Raises `ArtifactError` for a bundle from outside the run, which no stage can make again.
    """
    is_damaged = False
    if is_writer():
        hashes = FileHashes(draft.root)
        for artifact in draft.inputs.values():
            if changed := changed_files(artifact, hashes):
                progress.note(
                    f"{artifact.path.name}: {', '.join(changed)} changed after it was finished; making it again"
                )
                reopen(artifact, changed)
                is_damaged = True
        for folder in draft.folders.values():
            if (folder / MANIFEST).is_file():
                require_intact(open_artifact(folder))
    return from_writer(is_damaged)


def _check_job(config: RunConfig, stages: list[Stage]) -> None:
    """Rejects stages that this job's devices cannot run, before hours of work instead of after."""
    from lifecycle.parallel.mesh import build_mesh
    from lifecycle.training.freeze import frozen_part
    from lifecycle.training.memory import require_room

    for stage in stages:
        if stage.kind == "train":
            build_mesh(config.mesh)
            train, model = config.train[stage.name], config.model_of(stage.name)
            frozen_part(model, train.freeze)
            require_room(f"train.{stage.name}", train, model, config.mesh)
        if stage.kind == "evaluate":
            build_mesh(config.evaluation_mesh)


def _draft(config: RunConfig, stage: Stage, done: Inputs) -> Draft:
    settings, inputs = stage.settings(config), {name: done[name] for name in stage.inputs}
    folders = {} if stage.bundle is None else {"bundle": stage.bundle}
    return Draft(config.folder, stage.name, settings, inputs, folders)


def _finished(config: RunConfig, stage: Stage, draft: Draft, progress: Progress | None = None) -> Artifact | None:
    """The finished artifact of a draft; a damaged or outdated one counts as missing and is made again."""
    try:
        artifact = open_artifact(draft.final_path)
    except ArtifactError as error:
        if progress is not None and (draft.final_path / MANIFEST).is_file():
            progress.note(f"{error}: making it again")
        return None
    return artifact if stage.still_holds(config, artifact) else None


def _make(config: RunConfig, stage: Stage, draft: Draft, done: Inputs, progress: Progress) -> Artifact:
    if not stage.on_all_processes and not is_writer():
        return _wait(config, stage, draft)
    progress.start(stage.name)
    out = draft.open()
    inputs = {name: done[name] for name in stage.inputs}
    with draft.keeping_costs() if is_writer() else nullcontext():
        outcome = stage.load()(config, inputs, out, progress, **stage.arguments)
    if not is_writer():
        return _wait(config, stage, draft)
    return draft.commit(outcome.stats, outcome.content_hash, outcome.how)


def _wait(config: RunConfig, stage: Stage, draft: Draft) -> Artifact:
    """Waits for the artifact that the writing process makes; the launcher ends this process if that one fails."""
    while (artifact := _finished(config, stage, draft)) is None:
        time.sleep(POLL_S)
    return artifact


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One job at a time owns a run folder; the lock is released when the process ends, however it ends."""
    if not is_writer():
        yield
        return
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another run has locked this folder; wait for it, or set name=NAME to start another"
            ) from None
        yield
