"""Where the weights of each training stage come from: fresh ones, another stage's, or a bundle's.

A stage continues the last one before it that trains the same model; the first of a model starts with fresh weights.
`from` names another start: a stage of the run, a bundle's folder or its address in object storage, or `fresh`.
`STAGE@STEP` continues that stage's run (`stages/branches.py`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lifecycle.core.config import ConfigError, nearest
from lifecycle.core.fetched import copy_of
from lifecycle.core.json_file import read_json
from lifecycle.core.store import is_url
from lifecycle.model.config import ModelConfig
from lifecycle.stages.branches import check_branch, continued_run
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.registry import objective_kind
from lifecycle.weights.families.lookup import config_from

FRESH = "fresh"
BUNDLE_FILE = "config.json"  # a folder with this file counts as a bundle


@dataclass(frozen=True)
class Start:
    """A training stage's initial weights: a stage's, a bundle's, or, with neither, fresh ones."""

    stage: str | None = None
    bundle: Path | None = None
    url: str | None = None  # of a bundle in object storage; `bundle` is where its copy is made
    step: int | None = None  # the stage's run is continued from its checkpoint of this step

    @property
    def is_fresh(self) -> bool:
        """Whether training starts from fresh weights."""
        return self.stage is None and self.bundle is None


def starts_of(train: Mapping[str, TrainConfig], models: Mapping[str, str]) -> dict[str, Start]:
    """The start of each stage; `models`: each stage's model, by name. Raises `ValueError` for a `from` that is
    neither a stage nor a folder, or is a stage of another model."""
    starts = {name: _start(name, train, models) for name in train}
    for name, start in starts.items():
        if start.stage is not None and models[start.stage] != models[name]:
            raise ValueError(
                f"train.{name}.from={start.stage}: {start.stage} trains model {models[start.stage]!r}, {name} trains "
                f"{models[name]!r}; set train.{name}.model={models[start.stage]}, or start from another stage"
            )
    return starts


def in_order(train: Mapping[str, TrainConfig], starts: Mapping[str, Start]) -> tuple[str, ...]:
    """The stages, each after those whose weights it needs, otherwise in the order of the run's file.

    Raises `ValueError` for a cycle.
    """
    ordered: list[str] = []

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise ValueError(f"train: {cycle}: these stages wait for each other's weights; change a `from`")
        if name not in ordered:
            for before in needed_stages(name, train, starts):
                add(before, (*path, name))
            ordered.append(name)

    for name in train:
        add(name, ())
    return tuple(ordered)


def needed_stages(name: str, train: Mapping[str, TrainConfig], starts: Mapping[str, Start]) -> tuple[str, ...]:
    """The stages whose weights a stage needs: its start, and those that its objective names."""
    stages = [starts[name], *named_models(train[name], train).values()]
    return tuple(dict.fromkeys(start.stage for start in stages if start.stage is not None))


def named_models(train: TrainConfig, stages: Collection[str]) -> dict[str, Start]:
    """Where the models come from that an objective needs beside its own, by the setting that names them."""
    given = {field: getattr(train, field) for field in objective_kind(train.objective).models}
    found = {field: _named(name, stages) for field, name in given.items() if name is not None}
    return {field: start for field, start in found.items() if start is not None}


def lineage(name: str, starts: Mapping[str, Start]) -> tuple[str, ...]:
    """A stage and those before it, back to fresh weights or a bundle; the latest first."""
    stages = [name]
    while (before := starts[stages[-1]].stage) is not None:
        stages.append(before)
    return tuple(stages)


def check_stage_names(train: Mapping[str, TrainConfig]) -> None:
    """Raises `ValueError` if an objective names a model that is neither a stage nor a bundle's folder."""
    for name, config in train.items():
        for field in objective_kind(config.objective).models:
            other = getattr(config, field)
            if other is not None and _named(other, train) is None:
                raise ValueError(f"train.{name}.{field}={other}: no such training stage{_known(other, train)}")


def _start(name: str, train: Mapping[str, TrainConfig], models: Mapping[str, str]) -> Start:
    given = train[name].start
    if given is None:
        return Start(stage=_before(name, train, models))
    if given == FRESH:
        return Start()
    if (found := continued_run(given, train)) is not None:
        stage, step = found
        check_branch(name, stage, step, train)
        return Start(stage=stage, step=step)
    if (start := _named(given, train)) is not None:
        return start
    raise ValueError(
        f"train.{name}.from={given}: not a training stage and not a bundle's folder"
        f"{_known(given.rpartition('@')[0] or given, train)}; or give a folder as bundles/NAME"
    )


def bundle_model(at: str, folder: Path) -> ModelConfig:
    """The model of a bundle's folder, without prediction modules. Raises `ConfigError`, naming the setting, if there is
    none."""
    if not (folder / BUNDLE_FILE).is_file():
        raise ConfigError(
            f"{at}={folder}: no {BUNDLE_FILE} here; give a bundle's folder, for example one made by `lifecycle import`"
        )
    return config_from(read_json(folder / BUNDLE_FILE)).trunk


def _named(given: str, stages: Collection[str]) -> Start | None:
    """The weights of a training stage, or of a bundle in a folder or at an address; None: it is none of these."""
    if given in stages:
        return Start(stage=given)
    if is_url(given):
        return Start(bundle=copy_of(given), url=given)
    return Start(bundle=Path(given)) if "/" in given or (Path(given) / BUNDLE_FILE).is_file() else None


def _before(name: str, train: Mapping[str, TrainConfig], models: Mapping[str, str]) -> str | None:
    """The last stage before this one that trains the same model."""
    names = list(train)
    earlier = names[: names.index(name)]
    return next((other for other in reversed(earlier) if models[other] == models[name]), None)


def _known(name: object, train: Iterable[str]) -> str:
    return nearest(str(name), train)
