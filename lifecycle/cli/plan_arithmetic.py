"""`lifecycle plan ... topology=h100:8`: a step on one node of GPUs, by arithmetic; with `search=true` the best one."""

import shlex

from rich.console import Console

from lifecycle.cli.plan_search import changed, words
from lifecycle.core.config import ConfigError
from lifecycle.model.config import Remat
from lifecycle.planning.display.arithmetic import memory_table, ranked_table, time_table, trust
from lifecycle.planning.display.program import chip_line
from lifecycle.planning.search.arithmetic import ArithmeticPlan, plan_by_arithmetic, ranked
from lifecycle.planning.search.candidates import Candidate
from lifecycle.planning.search.search import SLACK
from lifecycle.planning.topology import Topology
from lifecycle.stages.config import RunConfig


def show_by_arithmetic(config: RunConfig, stage: str, is_search: bool, topology: Topology, console: Console) -> None:
    """Shows the stage's step as it is configured, or the candidates that fit and the best of them."""
    model, train = config.model_of(stage), config.remaining(stage)
    console.print(chip_line(topology.chip), highlight=False)
    if not is_search:
        everything: Remat = dict.fromkeys(model.remat_names(config.mesh), "save")
        kept = everything if train.remat is None else train.remat
        own = Candidate(config.mesh, train.grad_accum, "what the config keeps", kept, train.loss_chunks)
        _show(plan_by_arithmetic(model, train, own, topology), topology, console)
        return

    def check(candidate: Candidate) -> None:
        changed(config, stage, candidate)

    plans = ranked(model, train, topology, check, SLACK * topology.chip.hbm_bytes)
    if not plans:
        raise ConfigError(f"topology={topology.name}: no mesh and policy of this run fits by arithmetic")
    console.print(ranked_table(plans))
    _show(plans[0], topology, console)
    settings = " ".join(shlex.quote(word) for word in words(config, stage, plans[0].candidate))
    console.print(f"settings: {settings}", highlight=False, markup=False, soft_wrap=True)


def _show(plan: ArithmeticPlan, topology: Topology, console: Console) -> None:
    console.print(plan.candidate.name, highlight=False, markup=False)
    console.print(memory_table(plan, topology))
    console.print(time_table(plan))
    for line in trust(plan, topology):
        console.print(f"- {line}", highlight=False, markup=False)
