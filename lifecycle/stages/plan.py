"""`lifecycle plan`: what a run would find and make, and the sizes that its config implies."""

from rich.console import Console
from rich.table import Table

from lifecycle.model.config import forward_flops_per_token, num_params
from lifecycle.stages.chain import TARGETS, plan
from lifecycle.stages.config import RunConfig
from lifecycle.training.config import TrainConfig

FLOAT32_BYTES = 4
MOMENTS = {"adamw": 2, "muon": 2}  # Muon keeps one for the layers' matrices, Adam two for the rest: an upper bound


def show_plan(config: RunConfig, console: Console) -> None:
    """Prints two tables: the stages, and what each training stage costs."""
    console.print(_stages(config))
    console.print(_sizes(config))


def _stages(config: RunConfig) -> Table:
    table = Table(title=f"{config.name} in {config.folder}", title_justify="left", box=None, header_style="bold")
    for column in ("stage", "needs", "state"):
        table.add_column(column)
    for planned in plan(config, TARGETS["run"]):
        if planned.artifact is not None:
            state = f"done: {planned.artifact.path.name}"
        elif planned.draft is not None and planned.draft.path.exists():
            state = "begun: goes on from where it was"
        elif planned.draft is not None:
            state = "to run"
        else:
            state = "to run, after its inputs"
        table.add_row(planned.stage.name, ", ".join(planned.stage.inputs), state)
    return table


def _sizes(config: RunConfig) -> Table:
    parameters = num_params(config.model)
    mesh = " x ".join(f"{axis}={size}" for axis, size in config.mesh.plain().items() if size > 1) or "one device"
    title = f"{parameters:,} parameters, mesh: {mesh}"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for column in ("stage", "steps", "tokens", "training FLOPs", "parameters + optimizer per device"):
        table.add_column(column, justify="right")
    for name in ("pretrain", "sft", "prefer"):
        train: TrainConfig = getattr(config, name)
        tokens = train.steps * train.global_batch_size * train.seq_len
        flops = 3 * forward_flops_per_token(config.model, train.seq_len) * tokens
        shards = config.mesh.fsdp * config.mesh.tensor
        state = parameters * FLOAT32_BYTES * (1 + MOMENTS[train.optimizer.name]) / shards
        table.add_row(name, f"{train.steps:,}", f"{tokens:,}", f"{flops:.2e}", f"{state / 1e6:,.1f} MB")
    return table
