"""The chain of stages: which there are, what each needs, and what runs them.

A stage runs only if no finished artifact has its key, the hash of its config and of its inputs' contents. A verb brings
its targets up to date, and what they need. In a job of several processes the training stages run on all of them;
everything else runs on the first, and the others wait for its artifact.
"""

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from lifecycle.core.artifact import Artifact, ArtifactError, Draft, content_hash, hash_files, open_artifact
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import is_writer
from lifecycle.core.progress import Progress
from lifecycle.inference.defaults import generation_of_run, sampling_of
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.config import RunConfig

POLL_S = 0.5  # how often a process looks for what another one makes

type Inputs = Mapping[str, Artifact]


@dataclass(frozen=True)
class Outcome:
    """What a stage says of what it made; `content_hash` replaces the hash over the files where those may differ."""

    stats: dict[str, Any]
    content_hash: str | None = None


class StageRun(Protocol):
    def __call__(self, config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome: ...


@dataclass(frozen=True)
class Stage:
    """A link of the chain. `settings` gives the part of the config that decides what comes out."""

    name: str
    title: str
    module: str  # lifecycle.stages.<module>, imported only if the stage runs
    inputs: tuple[str, ...]
    settings: Callable[[RunConfig], dict[str, Any]]
    on_all_processes: bool = False
    start: str | None = None  # the input whose weights it goes on from, unless its config names a bundle
    arguments: dict[str, Any] = field(default_factory=dict)  # of the module's run(), for stages that share a module
    # for a stage whose work lies outside its artifact too: whether that is still as the artifact says
    still_holds: Callable[[RunConfig, Artifact], bool] = lambda config, artifact: True

    def load(self) -> StageRun:
        return import_module(f"lifecycle.stages.{self.module}").run


def _training(name: str) -> Callable[[RunConfig], dict[str, Any]]:
    def settings(config: RunConfig) -> dict[str, Any]:
        # how often to log and to save does not change the weights
        train = getattr(config, name).plain()
        for key in ("log_every", "checkpoint_every", "keep_checkpoints"):
            del train[key]
        if (start := getattr(config, name).start) is not None:
            bundle = Path(start)
            if not bundle.is_dir():
                raise ConfigError(
                    f"{name}.from={bundle}: no such folder; give a bundle, as `lifecycle import` makes one"
                )
            sampling_of(bundle)  # what the export will inherit: one that is damaged is told before the training
            train["start"] = content_hash(bundle)
        return {"train": train, "model": config.model.plain(), "mesh": config.mesh.plain(), "seed": config.seed}

    return settings


def _documents(config: RunConfig) -> dict[str, Any]:
    from lifecycle.data.sources import source_fingerprint  # reads the sources' files: only where the chain runs
    from lifecycle.evals.rows import local_rows

    return {
        "data": config.data.plain(),
        "sources": source_fingerprint(config.data),
        "eval_rows": local_rows(config.evaluate),
        "seed": config.seed,
    }


def _rows(config: RunConfig) -> dict[str, Any]:
    files = [*config.rows.sft, *config.rows.preference]
    for path in files:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file of rows; correct rows.sft or rows.preference")
    contents = {str(path): hash_files(path.parent, [path.name]) for path in files}
    against: dict[str, Any] = {}
    if files:  # own rows are compared with the evaluation's
        from lifecycle.evals.rows import local_rows

        against = {"eval_rows": local_rows(config.evaluate), **config.data.decontamination.plain()}
    return {**config.rows.plain(), "contents": contents, "against": against, "seed": config.seed}


def _evaluation(config: RunConfig) -> dict[str, Any]:
    from lifecycle.evals.rows import local_rows

    return {"evaluate": config.evaluate.plain(), "rows": local_rows(config.evaluate)}


def _bundle(config: RunConfig) -> dict[str, Any]:
    return {"model": config.model.plain(), "generation": generation_of_run(config.export.sampling, config.origin)}


def _is_registered(config: RunConfig, artifact: Artifact) -> bool:
    from lifecycle.stages.register import is_candidate

    return is_candidate(config, artifact)


def _evaluate(trained: str) -> Stage:
    inputs = (trained, "tokenizer", "documents", "rows")
    title = f"evaluate {trained}"
    return Stage(f"evaluate-{trained}", title, "evaluate", inputs, _evaluation, True, arguments={"trained": trained})


_STAGES = (
    Stage("documents", "documents", "documents", (), _documents),
    Stage("tokenizer", "tokenizer", "tokenizer", ("documents",), lambda c: {**c.tokenizer.plain(), "seed": c.seed}),
    Stage("tokens", "token shards", "tokens", ("documents", "tokenizer"), lambda c: {}),
    Stage("rows", "chat rows", "rows", ("documents",), _rows),
    Stage("pretrain", "pre-training", "pretrain", ("tokens", "tokenizer"), _training("pretrain"), True),
    Stage("sft", "fine-tuning", "sft", ("pretrain", "rows", "tokens", "tokenizer"), _training("sft"), True, "pretrain"),
    Stage("prefer", "preference tuning", "prefer", ("sft", "rows", "tokenizer"), _training("prefer"), True, "sft"),
    Stage("baseline", "trigram baseline", "baseline", ("documents", "tokens", "pretrain"), lambda c: {"seed": c.seed}),
    _evaluate("pretrain"),
    _evaluate("sft"),
    _evaluate("prefer"),
    Stage("bundle", "export", "export", ("prefer", "tokenizer"), _bundle),
    Stage(
        "registration",
        "register",
        "register",
        ("bundle", "evaluate-prefer"),
        lambda c: {"gate": c.gate.plain()},
        still_holds=_is_registered,
    ),
    Stage(
        "report",
        "report",
        "report",
        ("documents", "tokenizer", "tokens", "rows", "pretrain", "sft", "prefer", "baseline", "evaluate-pretrain",
         "evaluate-sft", "evaluate-prefer", "bundle", "registration"),
        lambda c: {"price": c.price.plain(), "name": c.name},
    ),
)  # fmt: skip
STAGES = {stage.name: stage for stage in _STAGES}

# What each verb of the command line brings up to date.
TARGETS: dict[str, tuple[str, ...]] = {
    "data": ("documents", "tokens", "rows"),
    "tokenizer": ("tokenizer",),
    "pretrain": ("pretrain",),
    "sft": ("sft",),
    "prefer": ("prefer",),
    "evaluate": ("baseline", "evaluate-pretrain", "evaluate-sft", "evaluate-prefer"),
    "export": ("bundle", "registration"),
    "report": ("report",),
    "run": ("report",),
}


def needed(targets: tuple[str, ...], config: RunConfig | None = None) -> list[Stage]:
    """The stages that the targets need, in an order in which each comes after its inputs; without a config, those of a
    run in which no stage starts from a bundle."""
    stages = _STAGES if config is None else [_as_configured(stage, config) for stage in _STAGES]
    wanted = set(targets)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.inputs)
    return [stage for stage in stages if stage.name in wanted]


def _as_configured(stage: Stage, config: RunConfig) -> Stage:
    """A stage that starts from a bundle does not need the one before it."""
    if stage.start is None or getattr(config, stage.name).start is None:
        return stage
    return replace(stage, inputs=tuple(name for name in stage.inputs if name != stage.start))


@dataclass(frozen=True)
class Planned:
    """A stage with its draft; `artifact` is what is already there, `draft` is None while an input is not made yet."""

    stage: Stage
    draft: Draft | None
    artifact: Artifact | None


def plan(config: RunConfig, targets: tuple[str, ...]) -> list[Planned]:
    """What a run would find and what it would have to make; makes nothing."""
    done: dict[str, Artifact] = {}
    planned = []
    for stage in needed(targets, config):
        draft = _draft(config, stage, done) if all(name in done for name in stage.inputs) else None
        artifact = _find(config, stage, draft) if draft is not None else None
        if artifact is not None:
            done[stage.name] = artifact
        planned.append(Planned(stage, draft, artifact))
    return planned


def bring_up_to_date(config: RunConfig, targets: tuple[str, ...], progress: Progress) -> dict[str, Artifact]:
    """Runs what is missing of the targets and of what they need; returns all their artifacts by stage."""
    config.folder.mkdir(parents=True, exist_ok=True)
    done: dict[str, Artifact] = {}
    with _locked(config.folder):
        stages = needed(targets, config)
        for number, stage in enumerate(stages):
            draft = _draft(config, stage, done)
            found = _find(config, stage, draft)
            if found is None and any(later.on_all_processes for later in stages[number:]):
                _check_job(config, stages[number:])
            done[stage.name] = found or _run(config, stage, draft, done, progress)
    return done


def _check_job(config: RunConfig, stages: list[Stage]) -> None:
    """What this job's devices cannot do is told before hours of work, not after."""
    build_mesh(config.mesh)
    if any(stage.module == "evaluate" for stage in stages):
        from lifecycle.stages.evaluate import require_room

        require_room(config)


def _draft(config: RunConfig, stage: Stage, done: Inputs) -> Draft:
    return Draft(config.folder, stage.name, stage.settings(config), {name: done[name] for name in stage.inputs})


def _find(config: RunConfig, stage: Stage, draft: Draft) -> Artifact | None:
    """The finished artifact of a draft; one that is damaged or no longer holds counts as missing and is made again."""
    try:
        artifact = open_artifact(draft.final_path)
    except ArtifactError:
        return None
    return artifact if stage.still_holds(config, artifact) else None


def _run(config: RunConfig, stage: Stage, draft: Draft, done: Inputs, progress: Progress) -> Artifact:
    if not stage.on_all_processes and not is_writer():
        return _wait(config, stage, draft)
    progress.start(stage.title)
    out = draft.open()
    inputs = {name: done[name] for name in stage.inputs}
    with draft.keeping_costs() if is_writer() else nullcontext():
        outcome = stage.load()(config, inputs, out, progress, **stage.arguments)
    if not is_writer():
        return _wait(config, stage, draft)
    return draft.commit(outcome.stats, outcome.content_hash)


def _wait(config: RunConfig, stage: Stage, draft: Draft) -> Artifact:
    """What the writing process makes, once it is whole; the launcher ends this process if that one fails."""
    while (artifact := _find(config, stage, draft)) is None:
        time.sleep(POLL_S)
    return artifact


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One job at a time owns a run folder; the lock goes with the process, however that ends."""
    if not is_writer():
        yield
        return
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another run is working here; wait for it, or set name=... to start another"
            ) from None
        yield
