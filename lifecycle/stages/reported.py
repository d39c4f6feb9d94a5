"""What a report is made from: the run's training stages with their artifacts, and of a run that goes on what it has so
far, which is read without owning the run."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError
from lifecycle.core.fetched import local_copy
from lifecycle.core.lease import is_owned_here
from lifecycle.core.runlog import METRICS, ROLLOUTS
from lifecycle.core.store import Store
from lifecycle.core.timesheet import TIMES
from lifecycle.data.selecting.contamination import FILE as CONTAMINATION
from lifecycle.report.blocks import Report
from lifecycle.report.comparison import build_comparison
from lifecycle.report.contents import build_report
from lifecycle.report.machine import machine_facts
from lifecycle.report.numbers import FUNNEL, collect
from lifecycle.report.rollouts_section import read_rollouts, rollouts_sections
from lifecycle.report.trained import TrainedStage
from lifecycle.report.watched import watched_stages
from lifecycle.stages.chain import states
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import EVALUATE
from lifecycle.stages.storage import read_registry, readable


def trained_stages(config: RunConfig, artifacts: Mapping[str, Artifact]) -> Iterator[TrainedStage]:
    """The training stages that are finished, in the order of the graph."""
    for name in config.training_stages:
        if name in artifacts:
            yield TrainedStage(
                name=name,
                objective=config.train[name].objective,
                artifact=artifacts[name],
                evaluation=artifacts.get(EVALUATE + name),
                start=config.starts[name].stage,
                is_exported=name == config.exported,
            )


def report_so_far(config: RunConfig) -> Report:
    """The report of the stages that are finished, without samples, and the curves of those that go on. Nothing is made;
    of a run in a store whose owner is on another machine, logs and results are copied. Raises `ConfigError` if no stage
    is finished."""
    read_registry(config)
    found = states(config, ("report",))
    if not any(state.artifact for state in found):
        raise ConfigError(f"{config.store_url or config.folder}: no stage is finished yet; `lifecycle watch` shows it")
    folder = _readable_folder(config, [state.artifact for state in found if state.artifact is not None])
    artifacts = {
        state.stage.name: replace(state.artifact, path=folder / state.artifact.path.name)
        for state in found
        if state.artifact is not None
    }
    open_names = {state.draft.final_path.name for state in found if state.draft and state.artifact is None}
    going_on = [stage for stage in watched_stages(folder) if stage.folder.name.removesuffix(".partial") in open_names]
    trained, model = list(trained_stages(config, artifacts)), config.model_of(config.exported)
    report = build_report(collect(config.name, model, trained, artifacts, (), config.price, machine_facts()))
    further = build_comparison({config.name: going_on}).sections if going_on else ()
    further += tuple(rollouts_sections([(stage.name, read_rollouts(stage.folder)) for stage in going_on], "so far"))
    waiting = ", ".join(state.stage.name for state in found if state.artifact is None)
    lead = f"{report.lead} Not finished: {waiting}." if waiting else report.lead
    return replace(report, lead=lead, sections=(*report.sections, *further))


def _readable_folder(config: RunConfig, finished: Iterable[Artifact]) -> Path:
    """The run's folder, or one with copies of what a report reads of it."""
    if config.store_url is None or is_owned_here(Store(config.store_url)):
        for artifact in finished:  # the run may have gone on here without them
            names = [name for name in artifact.manifest.files if _is_read(f"{artifact.path.name}/{name}")]
            readable(config).fetch(artifact, names)
        return config.folder
    folder = local_copy(config.store_url, _is_read)
    folder.mkdir(parents=True, exist_ok=True)  # nothing to read yet
    return folder


def _is_read(name: str) -> bool:
    """Whether a report reads an object of the run: logs, samples of rollouts, the funnel, what of the tests was in the
    documents, and all of an evaluation."""
    stage, _, file = name.partition("/")
    return file in (METRICS, ROLLOUTS, TIMES, FUNNEL, CONTAMINATION) or stage.startswith((EVALUATE, "baseline-"))
