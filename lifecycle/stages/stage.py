"""A stage: a node of a run's graph, which makes one artifact from those of other stages."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from lifecycle.core.artifact import Artifact
from lifecycle.core.progress import Progress
from lifecycle.stages.config import RunConfig
from lifecycle.stages.opened import Opened, everything
from lifecycle.stages.origins import Start

type Inputs = Mapping[str, Artifact]  # by the name of the stage that made it


@dataclass(frozen=True)
class Outcome:
    """The result of a stage's run, for its artifact's manifest.

    `content_hash` replaces the hash over the files if those may differ. `how` has a record for each session: its mesh,
    processes and hosts.
    """

    stats: dict[str, Any]
    content_hash: str | None = None
    how: Sequence[Mapping[str, Any]] = ()


class StageRun(Protocol):
    """A stage's work: writes into `out`, which may still have files of a killed run of the same stage."""

    def __call__(self, config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
        """Makes the artifact's content in `out` from the inputs' artifacts."""
        ...


def _always(config: RunConfig, artifact: Artifact) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """A node of the graph: makes the artifact `name`. `settings` returns the part of the config that decides its
    content."""

    name: str
    kind: str  # the module lifecycle.stages.<kind>, imported only if the stage runs
    inputs: tuple[str, ...]  # whose contents are in its key
    settings: Callable[[RunConfig], dict[str, Any]]
    # further inputs, from outside the run, by their use: bundles, and the documents of earlier runs
    bundles: Mapping[str, Start] = field(default_factory=dict)
    on_all_processes: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)  # for run(): which stage of its kind this is
    measured: tuple[str, ...] = ()  # stages with rows that it only measures on: no part of its key
    opens: Mapping[str, Opened] = field(default_factory=dict)  # by stage, where it does not open every file
    lacks: str | None = None  # what the config must have before the stage can be made, with the fix
    # for a stage with effects outside its artifact: whether these still match it; or whether code can do better by now
    still_holds: Callable[[RunConfig, Artifact], bool] = _always

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that come before it."""
        return tuple(dict.fromkeys((*self.inputs, *self.measured)))

    def opened(self, read: Artifact) -> Collection[str]:
        """The files that it opens of an artifact that it reads."""
        return self.opens.get(read.manifest.stage, everything)(read)

    def load(self) -> StageRun:
        """The function that does the work."""
        return import_module(f"lifecycle.stages.{self.kind}").run
