"""The chain: runs a graph. It finds finished artifacts, makes missing ones, and admits one job at a time to a run's
folder.

A stage runs only if no finished artifact has its key, the hash of its config and of its inputs' contents. Before it
runs, the contents of its inputs are compared with their manifests. In a job of several processes, stages that use all
devices run on all of them; everything else runs on the first process, and the others wait for its artifact.
"""

import itertools
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lifecycle.core import startup
from lifecycle.core.artifact import (
    MANIFEST,
    Artifact,
    Draft,
    changed_files,
    open_artifact,
    reopen,
    require_intact,
)
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import from_writer, has_joined, is_writer, words_of_job
from lifecycle.core.fetched import local_copy
from lifecycle.core.file_hashes import FileHashes
from lifecycle.core.progress import Progress
from lifecycle.core.shared_folder import is_apart, is_seen, look_for_shared, require_shared
from lifecycle.stages.branches import require_kept
from lifecycle.stages.checks import check_held
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, needed
from lifecycle.stages.stage import Inputs, Stage
from lifecycle.stages.storage import Artifacts, LocalArtifacts, owned, readable

POLL_S = 0.5  # how often a process checks for another one's artifact
SEEN_S = 180.0  # until a file of another host is seen: NFS remembers for a minute that there was none
MADE, HEAR_S = "lifecycle/made", 60.0  # what process 0 tells those that do not see its folder; for how long they wait
_made = itertools.count()  # stages that were made in this process, which all processes of a job make alike


@dataclass(frozen=True)
class StageState:
    """A stage, its draft (None while an input is missing) and its artifact (None: not finished)."""

    stage: Stage
    draft: Draft | None
    artifact: Artifact | None


def states(config: RunConfig, targets: Iterable[str]) -> list[StageState]:
    """The states of the targets and of the stages that they need; runs nothing and fetches no files."""
    artifacts = readable(config)
    done: dict[str, Artifact] = {}
    result = []
    for stage in needed(build_graph(config), targets):
        draft = _draft(config, stage, done) if all(name in done for name in stage.needs) else None
        artifact = _finished(config, stage, draft, artifacts) if draft is not None else None
        if artifact is not None:
            done[stage.name] = artifact
        result.append(StageState(stage, draft, artifact))
    return result


def finished_stage(config: RunConfig, name: str) -> Artifact:
    """The finished artifact of a stage; raises `ConfigError` if the current config has none."""
    artifact = states(config, (name,))[-1].artifact
    if artifact is None:
        raise ConfigError(f"{config.folder}: stage {name} is not finished; run: lifecycle run CONFIG --until {name}")
    readable(config).fetch(artifact)
    return artifact


def fetch_finished(config: RunConfig) -> None:
    """Makes sure that all finished artifacts of a run with a store are in its local folder."""
    if config.store_url is None:
        return
    possible: list[str] = []
    for stage in build_graph(config).values():
        if stage.lacks is None and {*stage.needs} <= {*possible}:
            possible.append(stage.name)
    artifacts = readable(config)
    for state in states(config, possible):
        if state.artifact is not None:
            artifacts.fetch(state.artifact)


def bring_up_to_date(
    config: RunConfig, targets: Iterable[str], progress: Progress, prepare: Callable[[], None] = lambda: None,
    takes_over: bool = True,
) -> dict[str, Artifact]:  # fmt: skip
    """Makes the missing artifacts of the targets and of the stages that they need; returns all of them by stage.

    `prepare` is called once, before the first stage that runs, if any does. `takes_over`: from an owner that has not
    renewed its lease. Raises `InUse` if another process makes the run.
    """
    targets = tuple(targets)
    stages = needed(build_graph(config), targets)
    done: dict[str, Artifact] = {}
    is_prepared = False
    with ExitStack() as opened:
        artifacts = opened.enter_context(owned(config, progress, takes_over)) if is_writer() else LocalArtifacts()
        if config.store_url is None:
            require_shared(config.folder)
        elif apart := look_for_shared(config.folder):
            progress.note(f"{', '.join(apart)}: not the first host's folder; each host fetches what it needs")
            artifacts = artifacts if is_writer() else readable(config)
        while len(done) < len(stages):
            stage = stages[len(done)]
            draft = _draft(config, stage, done)
            artifact = _agreed(config, stage, draft, artifacts)
            if artifact is None:
                if not is_prepared:
                    startup.passed("start")
                    prepare()
                    _check_job(config, stages[len(done) :])
                    startup.passed("imports")
                    is_prepared = True
                read = [done[name] for name in stage.needs]
                if _has_damaged_inputs(stage, draft, read, artifacts, progress):
                    done.clear()  # they are made again, and perhaps with other content
                    continue
                artifact = _make(config, stage, draft, done, artifacts, progress)
            done[stage.name] = artifact
        if is_writer():
            for target in targets:
                artifacts.fetch(done[target])
    return done


def _agreed(config: RunConfig, stage: Stage, draft: Draft, artifacts: Artifacts) -> Artifact | None:
    """The finished artifact of a draft, if there is one, the same in all processes of a job.

    Only the writing process decides; the others then ask the store.
    """
    if config.store_url is None or not has_joined():
        return _finished(config, stage, draft, artifacts)
    artifact = _finished(config, stage, draft, artifacts) if is_writer() else None
    is_finished = from_writer(artifact is not None)
    return artifact if is_writer() or not is_finished else _published(draft, readable(config))


def _has_damaged_inputs(
    stage: Stage, draft: Draft, read: list[Artifact], artifacts: Artifacts, progress: Progress
) -> bool:
    """Whether the content of an artifact that a stage reads is not the one that its manifest records; such an artifact
    becomes a draft again, with the files that are intact, so that training continues from a checkpoint. All processes
    get the same answer, and if that is no, have the files that the stage opens.

    Raises `ArtifactError` for a bundle from outside the run, which no stage can make again.
    """
    is_damaged, opened = False, [(artifact, stage.opened(artifact)) for artifact in read]
    if is_writer():
        for artifact, names in opened:
            artifacts.fetch(artifact, names)
            if changed := changed_files(artifact, FileHashes(draft.root), names):
                progress.note(
                    f"{artifact.path.name}: {', '.join(changed)} changed after it was finished; making it again"
                )
                reopen(artifact, changed)
                is_damaged = True
        for folder in draft.folders.values():
            if (folder / MANIFEST).is_file():
                require_intact(open_artifact(folder))
    elif is_apart() and stage.on_all_processes:
        for artifact, names in opened:
            _fetch_intact(artifact, names, artifacts)
    is_damaged = from_writer(is_damaged)
    if stage.on_all_processes and not is_damaged:
        _require_seen(artifact.path / name for artifact, names in opened for name in names)
    return is_damaged


def _fetch_intact(artifact: Artifact, names: Collection[str], artifacts: Artifacts) -> None:
    """Fetches files of an artifact to this host; once more those that are here and have changed."""
    artifacts.fetch(artifact, names)
    for changed in changed_files(artifact, FileHashes(artifact.path.parent), names):
        (artifact.path / changed).unlink(missing_ok=True)  # another process of this host finds it too
    artifacts.fetch(artifact, names)


def _require_seen(files: Iterable[Path], limit_s: float = SEEN_S) -> None:
    """Waits until this process sees what process 0 has fetched; raises `ConfigError` for a file that it does not."""
    for file in files:
        if not is_seen(file, limit_s):
            raise ConfigError(
                f"{file}: process 0 has this file, and it is not to be seen here after {limit_s:.0f} s; mount "
                "the same folder on all hosts, and run again"
            )


def _check_job(config: RunConfig, stages: list[Stage]) -> None:
    """Rejects stages that this job's devices cannot run, or whose checkpoint to start from will have been deleted,
    before hours of work instead of after."""
    from lifecycle.parallel.mesh import build_mesh
    from lifecycle.training.freeze import frozen_part
    from lifecycle.training.memory import require_room

    to_run = {stage.name for stage in stages}
    for stage in stages:
        if stage.kind == "train":
            build_mesh(config.mesh)
            start = config.starts[stage.name]
            if start.stage in to_run and start.step is not None:
                require_kept(stage.name, start.stage, start.step, config.train)
            train, model = config.train[stage.name], config.trained_model(stage.name)
            frozen_part(model, train.frozen(model))
            for field, other in config.other_models(stage.name).items():
                check_held(f"train.{stage.name}.{field}", train, model, other, config.mesh)
            require_room(f"train.{stage.name}", train, model, config.mesh)
        if stage.kind == "evaluate":
            build_mesh(config.evaluation_mesh)


def _draft(config: RunConfig, stage: Stage, done: Inputs) -> Draft:
    for start in stage.bundles.values():
        if start.url is not None:
            local_copy(start.url)
    settings, inputs = stage.settings(config), {name: done[name] for name in stage.inputs}
    folders = {use: start.bundle for use, start in stage.bundles.items() if start.bundle is not None}
    return Draft(config.folder, stage.name, settings, inputs, folders)


def _finished(config: RunConfig, stage: Stage, draft: Draft, artifacts: Artifacts) -> Artifact | None:
    """The finished artifact of a draft; an outdated one counts as missing and is made again."""
    artifact = artifacts.finished(draft.final_path)
    return artifact if artifact is not None and stage.still_holds(config, artifact) else None


def _make(
    config: RunConfig, stage: Stage, draft: Draft, done: Inputs, artifacts: Artifacts, progress: Progress
) -> Artifact:
    made = next(_made)
    if not stage.on_all_processes and not is_writer():
        return _made_by_writer(config, stage, draft, artifacts, made)
    progress.start(stage.name)
    inputs = {name: done[name] for name in stage.needs}
    with artifacts.making(stage, draft) as further:
        if config.store_url is not None and stage.on_all_processes:
            from_writer(True)  # the others begin once this one has fetched what there is
        out = draft.open()
        with draft.keeping_costs() if is_writer() else nullcontext():
            startup.passed("start")
            run = stage.load()
            startup.passed("imports")
            outcome = run(config, inputs, out, progress, **stage.arguments, **further)
    if not is_writer():
        return _made_by_writer(config, stage, draft, artifacts, made)
    artifact = draft.commit(outcome.stats, outcome.content_hash, outcome.how)
    artifacts.publish(artifact)
    if is_apart():
        words_of_job().key_value_set(f"{MADE}/{made}", "")
    startup.taken(stage.name)  # the next stage's time begins here
    return artifact


def _made_by_writer(config: RunConfig, stage: Stage, draft: Draft, artifacts: Artifacts, made: int) -> Artifact:
    """The artifact that the writing process makes, once it is there; the launcher ends this process if that one
    fails."""
    if not is_apart():
        return _wait(config, stage, draft)
    from jax.errors import JaxRuntimeError

    while True:
        try:
            words_of_job().blocking_key_value_get(f"{MADE}/{made}", int(HEAR_S * 1000))
            return _published(draft, artifacts)
        except JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _published(draft: Draft, artifacts: Artifacts) -> Artifact:
    artifact = artifacts.finished(draft.final_path)
    if artifact is None:
        raise ConfigError(f"{draft.final_path.name}: removed from the store while the run goes on; run again")
    return artifact


def _wait(config: RunConfig, stage: Stage, draft: Draft) -> Artifact:
    """Waits for the artifact in the folder that all share."""
    here = LocalArtifacts()
    while (artifact := _finished(config, stage, draft, here)) is None:
        time.sleep(POLL_S)
    return artifact
