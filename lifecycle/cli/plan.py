"""`lifecycle plan`: what a run would do, and, for a topology, what the compiler reports about its programs.

lifecycle plan CONFIG                                   the chain's state and the sizes that the config implies
lifecycle plan CONFIG topology=v5p:4x4x4                the first training stage's step, compiled without the chips
lifecycle plan CONFIG topology=v5p:4x4x4 stage=NAME     another training stage's step; of a stage of rollouts, the
                                                        sampler too, beside the trainer's state
lifecycle plan CONFIG topology=v5e:4x4 stage=decode     the engine's prefill and decode on serve.mesh
lifecycle plan CONFIG topology=v6e:16x16 search=true    a comparison of meshes, micro-batches and rematerialisation
lifecycle plan CONFIG topology=h100:16                  the same for two nodes of eight GPUs
"""

import difflib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator
from rich.console import Console
from rich.table import Table

from lifecycle.cli.arguments import ConfigPath, Overrides
from lifecycle.cli.display import progress_on
from lifecycle.cli.plan_mixture import show_mixtures
from lifecycle.cli.terminal import terminal
from lifecycle.core.config import ConfigError, Section, load_config, nearest, validate
from lifecycle.core.config_changes import said
from lifecycle.core.progress import Progress
from lifecycle.core.strict_yaml import parse_yaml
from lifecycle.model.counts import num_adapter_params, num_params
from lifecycle.planning.topology import Topology, parse_topology, prepare
from lifecycle.stages.branches import changes
from lifecycle.stages.chain import states
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph
from lifecycle.stages.origins import named_models
from lifecycle.stages.storage import read_registry
from lifecycle.training.config import TrainConfig

if TYPE_CHECKING:
    from lifecycle.planning.programs.plan import ProgramPlan

DECODE = "decode"  # as `stage`: the engine's programs


class PlanConfig(Section):
    """The settings of `plan` itself, in addition to the run's."""

    topology: str | None = None
    stage: str | None = None  # the training stage whose step is compiled, or `decode`; None: the first training stage
    search: bool = False
    is_tuned: bool = True  # a train step: with training's options (core/platform.py), not the compiler's defaults

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.topology is None and "topology" in self.model_fields_set:
            raise ValueError(
                "topology= is empty: write topology=CHIP:SHAPE, for example topology=v5p:4x4x4, or leave it out"
            )
        given = sorted(self.model_fields_set - {"topology"})
        if self.topology is None and given:
            words = " ".join(f"{name}={str(getattr(self, name)).lower()}" for name in given)
            raise ValueError(
                f"{words} needs a topology to compile for: add topology=CHIP:SHAPE, for example topology=v5p:4x4x4, "
                f"or leave out {' and '.join(given)}"
            )
        if self.search and self.stage == DECODE:
            raise ValueError(
                "search=true compares meshes for training, and stage=decode is the engine's programs; leave out one of "
                "the two"
            )
        return self


def plan(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Shows the state of a run's stages; with topology=v5p:4x4x4, its steps as their compiler compiles them."""
    show_plan(config, overrides, terminal())


def show_plan(path: Path, words: tuple[str, ...], console: Console) -> None:
    """Runs the verb; `words` are settings of the run and of the plan, mixed."""
    own, others = split(words)
    config = load_config(RunConfig, path, others)
    if own.topology is None:
        console.print(_stages(config))
        console.print(_sizes(config))
        if any(start.step is not None for start in config.starts.values()):
            console.print(_changes(config))
        if config.filled:
            console.print(_filled(config))
        show_mixtures(config, console)
        return
    prepare()
    topology = parse_topology(own.topology)
    try:
        with progress_on(terminal(stderr=True)) as progress:
            _compile(config, own, topology, console, progress)
    except KeyboardInterrupt:
        # A compilation cannot be stopped, and Python waits for its thread before it exits (31 s observed).
        console.print("stopped; compiled programs are cached, and the same command continues from here")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)


def _compile(config: RunConfig, own: PlanConfig, topology: Topology, console: Console, progress: Progress) -> None:
    if own.search:
        from lifecycle.cli.plan_search import search_and_show

        search_and_show(config, planned_stage(config, own.stage), own.is_tuned, topology, console, progress)
    elif own.stage == DECODE:
        plan_decode(config, own, topology, console, progress)
    else:
        plan_training(config, own, topology, console, progress)


def planned_stage(config: RunConfig, stage: str | None) -> str:
    """The name of the training stage to plan, by default the first. Raises `ConfigError` for an unknown stage."""
    name = next(iter(config.train)) if stage is None else stage
    if name not in config.train:
        raise ConfigError(f"stage={name}: no such training stage{nearest(name, [*config.train, DECODE])}")
    return name


def split(words: tuple[str, ...]) -> tuple[PlanConfig, tuple[str, ...]]:
    """Splits words into the plan's own settings and the run's. Raises `ConfigError` for a misspelt plan setting."""
    import yaml

    tree, others = {}, []
    for word in words:
        name, equals, value = word.partition("=")
        if name in PlanConfig.model_fields:
            if not equals:
                raise ConfigError(f"{name}: expected {name}=VALUE")
            try:
                tree[name] = parse_yaml(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"{word}: the value is not valid YAML: {error}") from None
            continue
        near = difflib.get_close_matches(name, PlanConfig.model_fields, n=1, cutoff=0.75)
        if near and name not in RunConfig.model_fields:
            raise ConfigError(f"{name}: no such setting; did you mean {near[0]!r}?")
        others.append(word)
    return validate(PlanConfig, tree, where="plan"), tuple(others)


def plan_training(config: RunConfig, own: PlanConfig, topology: Topology, console: Console, progress: Progress) -> None:
    """Plans a training stage's step on the config's mesh; of a stage of rollouts, all that a step of it runs."""
    from lifecycle.planning.display.stage import stage_table
    from lifecycle.planning.programs.plan import plan_stage

    stage = planned_stage(config, own.stage)
    model, train = config.trained_model(stage), with_steps(config, stage)
    as_run = {"vocab_size": model.vocab_size}  # of other rows, if the teacher has more or fewer
    others = {name: other.model_copy(update=as_run) for name, other in config.held_models(stage).items()}
    scorer = named_models(train, config.train).get("reward")
    reward = None if scorer is None or scorer.stage is None else config.trained_model(scorer.stage)
    plans: list[ProgramPlan] = []
    sizes = model, train, config.mesh, topology, f"train.{stage}"
    for plan in plan_stage(*sizes, own.is_tuned, progress, others, reward):
        _show_and_write(plan, config, topology, console)
        plans.append(plan)
    if len(plans) > 1:
        console.print(stage_table(plans))


def plan_decode(config: RunConfig, own: PlanConfig, topology: Topology, console: Console, progress: Progress) -> None:
    """Plans the engine's two programs for the exported model, on the mesh that serves it."""
    from lifecycle.planning.programs.plan import plan_engine

    if DECODE in config.train:
        raise ConfigError(
            f"stage={DECODE} means the engine's programs, but a training stage has that name; rename the stage"
        )
    model = config.model_of(config.exported)
    serve = config.serve
    sizes = serve.num_slots, serve.max_seq_len or model.max_seq_len, serve.mesh
    planned = model, *sizes, topology, own.is_tuned, progress
    if serve.speculation is not None:
        console.print("serve.speculation is not planned: these are the programs of a server without drafts")
    for plan in plan_engine(*planned, weights=serve.weights, kv_cache=serve.kv_cache):
        _show_and_write(plan, config, topology, console)


def _show_and_write(plan: "ProgramPlan", config: RunConfig, topology: Topology, console: Console) -> None:
    from lifecycle.planning.display.file import write_plan
    from lifecycle.planning.display.program import show

    show(plan, console)
    path = write_plan(config.folder, plan.program, topology, plan.plain())
    console.print(f"written: {path}", highlight=False)


def _stages(config: RunConfig) -> Table:
    table = Table(title=f"{config.name} in {config.folder}", title_justify="left", box=None, header_style="bold")
    for column in ("stage", "needs", "state"):
        table.add_column(column)
    read_registry(config)
    for known in states(config, ("report",)):
        if known.artifact is not None:
            state = f"done: {known.artifact.path.name}"
        elif known.draft is not None and known.draft.path.exists():
            state = "begun: resumes"
        elif known.draft is not None:
            state = "to run"
        else:
            state = "to run, after its inputs"
        table.add_row(known.stage.name, ", ".join(known.stage.inputs), state)
    return table


def _sizes(config: RunConfig) -> Table:
    mesh = " x ".join(f"{axis}={size}" for axis, size in config.mesh.plain().items() if size > 1) or "one device"
    title = f"mesh: {mesh}"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in ("stage", "parameters", "steps", "tokens", "training FLOPs", "parameters + optimizer per device"):
        table.add_column(column, justify="right")
    for name in config.training_stages:
        train, model = with_steps(config, name), config.trained_model(name)
        beside = num_adapter_params(model)
        parameters = f"{beside:,} of {num_params(model):,}" if beside else f"{num_params(model):,}"
        tokens = train.steps * train.global_batch_size * train.seq_len
        flops = (train.flops_per_token(model) + config.held_flops(name)) * tokens
        length = (
            (f"{train.steps:,}", f"{tokens:,}", f"{flops:.2e}") if train.steps else (f"{train.epochs:g} epochs", "", "")
        )
        held = 2 * sum(map(num_params, config.held_models(name).values()))  # as accelerators hold them, in bfloat16
        state = (train.state_bytes(model) + held) / (config.mesh.size // config.mesh.replica)
        table.add_row(name, parameters, *length, f"{state / 1e6:,.1f} MB")
    return table


def with_steps(config: RunConfig, name: str) -> TrainConfig:
    """A training stage's settings with the steps that it takes itself. Those of a stage that is given in epochs follow
    from its rows: they are 0 until these are made."""
    train = config.remaining(name)
    if train.epochs is None or "rows" not in build_graph(config):
        return train
    rows = states(config, ("rows",))[-1].artifact
    known = None if rows is None else rows.stats.get("epoch_rows", {}).get(name)
    return train if known is None else train.resolved(known)


def _changes(config: RunConfig) -> Table:
    table = Table(title="runs that go on", title_justify="left", box=None, header_style="bold")
    table.add_column("stage", no_wrap=True)
    table.add_column("after", no_wrap=True)
    table.add_column("with")
    for name, start in config.starts.items():
        if start.step is not None:
            made = changes(name, config.train)["goes_on"]["settings"]
            table.add_row(name, f"step {start.step:,} of {start.stage}", said(made))
    return table


def _filled(config: RunConfig) -> Table:
    title = "filled in by depth; give one to change it"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("rule")
    for known in config.filled:
        value = f"{known.value:,}" if isinstance(known.value, int) else f"{known.value:g}"
        table.add_row(known.setting, value, known.rule)
    return table
