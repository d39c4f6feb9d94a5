"""`lifecycle plan`: what a run would find and make, and, for a topology, what the compiler says of it.

lifecycle plan CONFIG                                   the chain's state and the sizes that the config implies
lifecycle plan CONFIG topology=v5p:4x4x4                the whole train step compiled for chips that are not here
lifecycle plan CONFIG topology=v5e:1x1 stage=decode     the engine's prefill and decode
lifecycle plan CONFIG topology=v6e:16x16 search=true    meshes, micro-batches and rematerialisation compared
"""

import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator
from rich.console import Console
from rich.table import Table

from lifecycle.cli.arguments import ConfigPath, Overrides
from lifecycle.cli.display import progress_on
from lifecycle.core.config import ConfigError, Section, load_config, validate
from lifecycle.core.progress import Progress
from lifecycle.model.config import forward_flops_per_token, num_params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.topology import Topology, parse_topology, prepare
from lifecycle.stages.chain import states
from lifecycle.stages.config import RunConfig
from lifecycle.training.config import CrossEntropyConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from lifecycle.planning.programs.plan import Planned

FLOAT32_BYTES = 4
MOMENTS = {"adamw": 2, "muon": 2}  # Muon keeps one for the layers' matrices, Adam two for the rest: an upper bound
IRRELEVANT = {  # to a program
    "objective", "start", "model", "steps", "eval_every", "log_every", "checkpoint_every", "keep_checkpoints",
    "eval_bytes",
}  # fmt: skip


class PlanConfig(Section):
    """What `plan` itself takes beside a run's settings."""

    topology: str | None = None
    stage: Literal["pretrain", "decode"] = "pretrain"
    search: bool = False
    is_tuned: bool = True  # compile with training's options (core/platform.py), not with the compiler's defaults

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.topology is None and "topology" in self.model_fields_set:
            raise ValueError(
                "topology= names none: give it as topology=CHIP:SHAPE, as topology=v5p:4x4x4, or leave it out"
            )
        given = sorted(self.model_fields_set - {"topology"})
        if self.topology is None and given:
            words = " ".join(f"{name}={str(getattr(self, name)).lower()}" for name in given)
            raise ValueError(
                f"{words} says how to compile, but no topology for which: add topology=CHIP:SHAPE, as "
                f"topology=v5p:4x4x4, or leave out {' and '.join(given)}"
            )
        if self.search and self.stage == "decode":
            raise ValueError(
                "search=true compares meshes for training, and stage=decode is the engine's programs, which run on one "
                "device; leave out one of the two"
            )
        return self


def plan(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Says what a run would find and make; with topology=v5p:4x4x4, what the TPU compiler says of its steps."""
    show_plan(config, overrides, Console())


def show_plan(path: Path, words: tuple[str, ...], console: Console) -> None:
    """The verb: `words` are settings of the run and of the plan, mixed."""
    own, others = split(words)
    config = load_config(RunConfig, path, others)
    if own.topology is None:
        console.print(_stages(config))
        console.print(_sizes(config))
        return
    prepare()
    topology = parse_topology(own.topology)
    try:
        with progress_on(Console(stderr=True)) as progress:
            _compile(config, own, topology, console, progress)
    except KeyboardInterrupt:
        # A compilation cannot be stopped, and at its exit Python would wait for its thread (31 s were seen).
        console.print("stopped; what was compiled is kept, the same command goes on from here")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)


def _compile(config: RunConfig, own: PlanConfig, topology: Topology, console: Console, progress: Progress) -> None:
    if own.search:
        from lifecycle.cli.plan_search import search_and_show

        search_and_show(config, own, topology, console, progress)
    elif own.stage == "decode":
        plan_decode(config, own, topology, console, progress)
    else:
        plan_training(config, own, topology, console, progress)


def split(words: tuple[str, ...]) -> tuple[PlanConfig, tuple[str, ...]]:
    """The plan's own settings, and what is left for the run's. Raises `ConfigError` for a name that is nearly ours."""
    import yaml

    tree, others = {}, []
    for word in words:
        name, equals, value = word.partition("=")
        if name in PlanConfig.model_fields:
            if not equals:
                raise ConfigError(f"{name}: expected {name}=VALUE")
            try:
                tree[name] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"{word}: the value is not valid YAML: {error}") from None
            continue
        near = difflib.get_close_matches(name, PlanConfig.model_fields, n=1, cutoff=0.75)
        if near and name not in RunConfig.model_fields:
            raise ConfigError(f"{name}: no such setting; did you mean {near[0]!r}?")
        others.append(word)
    return validate(PlanConfig, tree, where="plan"), tuple(others)


def plan_training(config: RunConfig, own: PlanConfig, topology: Topology, console: Console, progress: Progress) -> None:
    """The pre-training step on the config's mesh."""
    from lifecycle.planning.display.program import show
    from lifecycle.planning.estimate.step import budget
    from lifecycle.planning.programs.lowering import train_work

    train = compiled_stage(config)
    planned = planned_training(config, config.mesh, train, own, topology, progress)
    work = train_work(config.model, train)
    found = None if planned.estimate is None else budget(planned.estimate, topology, work)
    show(planned, found, console)
    write_beside(config, planned.program, topology, {**planned.plain(), "budget": found and vars(found)}, console)


def compiled_stage(config: RunConfig) -> CrossEntropyConfig:
    """The settings of the first training stage, whose step is compiled."""
    name, train = next(iter(config.train.items()))
    if not isinstance(train, CrossEntropyConfig):
        raise ConfigError(f"train.{name}: the step of objective {train.objective} is not planned yet")
    return train


def planned_training(
    config: RunConfig,
    mesh_config: MeshConfig,
    train: CrossEntropyConfig,
    own: PlanConfig,
    topology: Topology,
    progress: Progress,
) -> "Planned":
    """A plan of the train step, from the kept ones if nothing that it depends on has changed."""
    from lifecycle.core.platform import compiler_options
    from lifecycle.planning.programs.lowering import lower_train, seen_share
    from lifecycle.planning.topology import mesh_over

    mesh = mesh_over(topology, mesh_config)
    options = compiler_options(mesh.devices.flat[0].device_kind) if own.is_tuned else {}
    settings = {name: value for name, value in train.plain().items() if name not in IRRELEVANT}
    key = {
        "program": "pretrain",
        "topology": topology.name,
        "mesh": mesh_config.plain(),
        "model": config.model.plain(),
        "train": settings,
        "options": options,
    }
    lower = partial(lower_train, config.model, train, mesh)
    return _kept_or_compiled(key, topology, mesh, lower, seen_share(config.model, train.seq_len), progress)


def _kept_or_compiled(
    key: Mapping[str, Any], topology: Topology, mesh: "Mesh", lower: Callable[[], Any], share: float, progress: Progress
) -> "Planned":
    """The plan of the key's program with the key's options, and kept for the next time."""
    from lifecycle.planning.programs.plan import Kept, plan_program

    kept, program = Kept(), key["program"]
    planned = kept.get(key)
    if planned is None:
        progress.start(f"compiling {program} for {topology.name}")
        planned = plan_program(program, topology, mesh, lower, share, key["options"], progress)
        kept.put(key, planned)
    return planned


def plan_decode(config: RunConfig, own: PlanConfig, topology: Topology, console: Console, progress: Progress) -> None:
    """The engine's two programs; they run on one device."""
    from lifecycle.core.platform import compiler_options
    from lifecycle.planning.display.program import show
    from lifecycle.planning.estimate.step import inference_budget
    from lifecycle.planning.programs.lowering import decode_work, lower_decode, lower_prefill, prefill_work
    from lifecycle.planning.topology import mesh_of_one

    if topology.num_chips != 1:
        one = "x".join("1" for _ in topology.shape)
        raise ConfigError(
            f"topology={topology.name}: the engine decodes on one device, this has {topology.num_devices}; "
            f"choose topology={topology.chip.name}:{one}"
        )
    mesh, length = mesh_of_one(topology), config.serve.max_seq_len or config.model.max_seq_len
    options = compiler_options(mesh.devices.flat[0].device_kind) if own.is_tuned else {}
    slots = config.serve.num_slots
    programs = (
        ("prefill", lower_prefill, prefill_work(config.model, length)),
        ("decode", lower_decode, decode_work(config.model, slots, length)),
    )
    for name, lower, work in programs:
        sizes = {"num_slots": slots, "length": length}
        key = {"program": name, "topology": topology.name, "model": config.model.plain(), **sizes, "options": options}
        planned = _kept_or_compiled(
            key, topology, mesh, partial(lower, config.model, slots, length, mesh), 1.0, progress
        )
        found = None if planned.estimate is None else inference_budget(planned.estimate, topology, work)
        show(planned, found, console)
        write_beside(config, name, topology, {**planned.plain(), "budget": found and vars(found)}, console)


def write_beside(
    config: RunConfig, program: str, topology: Topology, plain: Mapping[str, Any], console: Console
) -> None:
    """The plan as JSON in the run's folder."""
    name = topology.name.replace(":", "-").replace("*", "-slices")
    path = config.folder / f"plan-{program}-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {path}", highlight=False)


def _stages(config: RunConfig) -> Table:
    table = Table(title=f"{config.name} in {config.folder}", title_justify="left", box=None, header_style="bold")
    for column in ("stage", "needs", "state"):
        table.add_column(column)
    for there in states(config, ("report",)):
        if there.artifact is not None:
            state = f"done: {there.artifact.path.name}"
        elif there.draft is not None and there.draft.path.exists():
            state = "begun: goes on from where it was"
        elif there.draft is not None:
            state = "to run"
        else:
            state = "to run, after its inputs"
        table.add_row(there.stage.name, ", ".join(there.stage.inputs), state)
    return table


def _sizes(config: RunConfig) -> Table:
    mesh = " x ".join(f"{axis}={size}" for axis, size in config.mesh.plain().items() if size > 1) or "one device"
    title = f"mesh: {mesh}"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in ("stage", "parameters", "steps", "tokens", "training FLOPs", "parameters + optimizer per device"):
        table.add_column(column, justify="right")
    for name in config.training_stages:
        train, model = config.train[name], config.model_of(name)
        parameters = num_params(model)
        tokens = train.steps * train.global_batch_size * train.seq_len
        flops = 3 * forward_flops_per_token(model, train.seq_len) * tokens
        shards = config.mesh.size // config.mesh.replica
        state = parameters * FLOAT32_BYTES * (1 + MOMENTS[train.optimizer.name]) / shards
        table.add_row(
            name, f"{parameters:,}", f"{train.steps:,}", f"{tokens:,}", f"{flops:.2e}", f"{state / 1e6:,.1f} MB"
        )
    return table
