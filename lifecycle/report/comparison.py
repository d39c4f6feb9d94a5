"""Several runs on one page: their curves in the same charts, and a table of the settings that differ.

A run need not be finished, nor have all stages of the others; one whose log is damaged is named, and the others are
drawn.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lifecycle.core.artifact import MANIFEST, ArtifactError, open_artifact
from lifecycle.report.blocks import Block, Charts, LineChart, Paragraph, Report, ReportSection, Series, Table
from lifecycle.report.curves import charts_of, is_drawn, is_measured
from lifecycle.report.format import count, duration, share, significant
from lifecycle.report.watched import WatchedStage, watched_stages

type Runs = Mapping[str, Sequence[WatchedStage]]  # by the name that the page uses

REWARDS = {"reward": "reward", "held-out reward": "heldout_reward"}  # columns, where a stage has them
MOST = 6  # runs in a chart: more colours cannot be told apart


def read_runs(folders: Sequence[Path]) -> Runs:
    """The training stages of each run. Raises `ValueError` for too many runs, or for none with a training stage."""
    if not 1 <= len(folders) <= MOST:
        raise ValueError(f"{len(folders)} runs: up to {MOST} can be told apart in a chart; compare fewer at a time")
    if doubled := next((a for a, b in pairwise(sorted(f.absolute() for f in folders)) if a == b), None):
        raise ValueError(f"{doubled} is named twice; name each run once")
    runs = dict(zip(names_of(folders), map(watched_stages, folders), strict=True))
    if not any(runs.values()):
        raise ValueError(f"{', '.join(map(str, folders))}: no training stage has begun in any of them")
    return runs


def names_of(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the runs' paths that differ."""
    paths = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different folders have different paths")


def build_comparison(runs: Runs) -> Report:
    """The page: what differs, then each stage's curves."""
    stages = list(dict.fromkeys(stage.name for run in runs.values() for stage in run))
    sections = [ReportSection("runs", "Runs", tuple(_overview(runs)))]
    for name in stages:
        of_runs = {run: stage for run, found in runs.items() for stage in found if stage.name == name}
        sections.append(ReportSection(name, name, tuple(_stage(of_runs, list(runs)))))
    return Report("Comparison", f"Training stages of {', '.join(runs)}.", tuple(sections))


def _overview(runs: Runs) -> Iterator[Block]:
    damaged = [f"{run}, {s.name}: {s.damage}" for run, found in runs.items() for s in found if s.damage is not None]
    yield from (Paragraph(f"Not drawn: {text}") for text in damaged)
    yield from (Paragraph(f"{run}: no training stage has begun.") for run, found in runs.items() if not found)
    stages = [(run, stage) for run, found in runs.items() for stage in found if stage.damage is None]
    names = {name: metric for name, metric in REWARDS.items() if any(metric in stage.names for _, stage in stages)}
    columns = ("stage", "run", "steps", "last loss", *names, "tokens/s", "goodput", "wall time")
    yield Table("So far", columns, tuple(sorted(_facts(*one, tuple(names.values())) for one in stages)), columns[2:])


def _facts(run: str, stage: WatchedStage, rewards: tuple[str, ...]) -> tuple[str, ...]:
    loss, rate, step = stage.newest("loss"), stage.tokens_per_s, stage.newest("step")
    sheet, newest = stage.account, [stage.newest(metric) for metric in rewards]
    return (
        stage.name,
        run,
        "" if step is None else count(step),
        "" if loss is None else significant(loss),
        *("" if reward is None else significant(reward) for reward in newest),
        "" if rate is None else count(rate),
        share(sheet.goodput) if stage.sessions else "",
        duration(sheet.wall_s) if stage.sessions else "",
    )


def _stage(of_runs: Mapping[str, WatchedStage], all_runs: Sequence[str]) -> Iterator[Block]:
    if missing := [run for run in all_runs if run not in of_runs]:
        yield Paragraph(f"Not a stage of {', '.join(missing)}.")
    if len(of_runs) > 1:
        yield _differences({run: _settings(stage) for run, stage in of_runs.items()})
    yield from (Paragraph(f"Warning, {run}, {r}.") for run, stage in of_runs.items() for r in stage.remarks)
    curves = {run: {name: stage.curve(name) for name in stage.names} for run, stage in of_runs.items()}
    metrics = dict.fromkeys(name for of_run in curves.values() for name in of_run if is_drawn(name))
    yield Charts(tuple(_chart(metric, curves, all_runs) for metric in metrics))


def _chart(
    metric: str, curves: Mapping[str, Mapping[str, list[tuple[float, float]]]], all_runs: Sequence[str]
) -> LineChart:
    """The runs that have the metric, each in its colour of all charts."""
    title, unit, axis = charts_of(metric)
    series = tuple(
        Series(run, tuple(of_run[metric]), dots=is_measured(metric), color=all_runs.index(run))
        for run, of_run in curves.items()
        if metric in of_run
    )
    return LineChart(title, unit, series, axis)


def _settings(stage: WatchedStage) -> dict[str, str] | None:
    """A stage's settings by dotted name: from its time sheet, or from the manifest; None if neither has them."""
    settings = stage.facts.get("settings")
    if settings is None and (stage.folder / MANIFEST).is_file():
        try:
            settings = open_artifact(stage.folder).manifest.config
        except ArtifactError:
            return None
    return None if settings is None else dict(_flat(settings))


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else key)
    else:
        yield name, str(tree)


def _differences(settings: Mapping[str, dict[str, str] | None]) -> Table | Paragraph:
    unknown = [run for run, known in settings.items() if known is None]
    known = {run: found for run, found in settings.items() if found is not None}
    names = dict.fromkeys(name for found in known.values() for name in found)
    differing = [name for name in names if len({found.get(name, "") for found in known.values()}) > 1]
    remark = f" Unknown: those of {', '.join(unknown)}." if unknown else ""
    if not differing:
        return Paragraph(f"All known settings are the same.{remark}")
    rows = tuple((name, *(found.get(name, "") for found in known.values())) for name in differing)
    return Table(f"Settings that differ.{remark}", ("setting", *known), rows)
