"""`lifecycle scaling`: a ladder of small models, the loss law fitted to it, and the run's loss and cost predicted.

lifecycle scaling CONFIG                       depths from a sixth to a half of the model's
lifecycle scaling CONFIG depths=[1,2,3,4]      these depths
lifecycle scaling CONFIG plan=true             the ladder and its share of the run's FLOPs; trains nothing
"""

import json
from contextlib import nullcontext
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.table import Table as Printed

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.display import progress_on
from lifecycle.cli.make import start_jax
from lifecycle.cli.terminal import terminal
from lifecycle.core import distributed
from lifecycle.core.config import Section, digest, read_settings
from lifecycle.core.distributed import errors_are_shared
from lifecycle.core.files import write_text
from lifecycle.core.progress import Silent
from lifecycle.report.blocks import Table
from lifecycle.report.format import share
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.stages.ladder import Rung, depths_below, ladder, target_of

REPORT, NUMBERS = "scaling.html", "scaling.json"  # in the run's folder


class ScalingConfig(Section):
    """The settings of `scaling` itself, in addition to the run's."""

    # Of the rungs; None: from a sixth of the model's to a half.
    depths: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    plan: bool = False


@errors_are_shared()
def scaling(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Trains a ladder of small models on the run's data and predicts the run's loss, tokens and cost."""
    own = [word for word in overrides if word.partition("=")[0] in ScalingConfig.model_fields]
    settings = read_settings(ScalingConfig, own)
    run = read_config(config, tuple(word for word in overrides if word not in own))
    target = target_of(run)
    small, rungs = ladder(run, settings.depths or depths_below(target.model.num_layers))
    if settings.plan:
        _show_plan(target, rungs, terminal())
    else:
        _make(run, small, target, rungs)


def _make(run: RunConfig, small: RunConfig, target: Rung, rungs: tuple[Rung, ...]) -> None:
    distributed.start({"config": digest(small.plain())[:12], "stages": "scaling"})  # before `is_writer` is asked
    console = terminal()
    with progress_on(console) if distributed.is_writer() else nullcontext(Silent()) as progress:  # one process speaks
        stages = tuple(rung.stage for rung in rungs)
        artifacts = bring_up_to_date(small, stages, progress, lambda: start_jax(small.folder))
    if not distributed.is_writer():
        return
    from lifecycle.report.html import render_html
    from lifecycle.stages.scaling import checks_table, forecast, measure, rungs_table, scaling_report, target_table

    known = forecast(target, measure(rungs, artifacts))
    for table in (rungs_table(known), checks_table(known), target_table(known, run.price)):
        console.print(_printed(table))
    write_text(run.folder / REPORT, render_html(scaling_report(known, run.name, run.price)))
    write_text(run.folder / NUMBERS, json.dumps(known.plain(), indent=1) + "\n")
    console.print(f"report  {run.folder / REPORT}", markup=False, highlight=False)


def _show_plan(target: Rung, rungs: tuple[Rung, ...], console: Console) -> None:
    from lifecycle.stages.scaling import plan_table

    console.print(_printed(plan_table(target, rungs)))
    whole = sum(rung.flops for rung in rungs) / target.flops
    console.print(f"the ladder takes {share(whole)} of the FLOPs of train.{target.stage}", highlight=False)


def _printed(table: Table) -> Printed:
    printed = Printed(title=table.caption, title_justify="left", box=None, header_style="bold")
    for column in table.columns:
        printed.add_column(column, justify="right" if column in table.numeric else "left")
    for row in table.rows:
        printed.add_row(*row)
    return printed
