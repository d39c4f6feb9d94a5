"""The section on training: settings, speed and curves of each stage."""

from collections.abc import Iterator, Mapping
from typing import Any

from lifecycle.report.blocks import Block, Charts, Heading, Paragraph, ReportSection, Table
from lifecycle.report.curves import line_charts
from lifecycle.report.format import count, counts, flops, share, significant, size
from lifecycle.report.trained import Training
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.registry import objective_kind

CONVENTION = (
    "FLOPs are the model's own: three forward passes per training token, causal attention counted at half. MFU "
    "divides the FLOPs per second of the median logging interval (wall time) by the rate of one large matrix product, "
    "measured on one device after the steps of a process's first stage, times the number of devices. Other programs "
    "on the machine lower MFU; they change FLOPs per core-second only a little. All cover the steps alone, without "
    "compilation and measurements; a checkpoint is written during the steps after it, and a process's first step "
    "includes the first run of its program, which takes longer. Axes of learning rates, gradient norms and "
    "throughputs start at 0 and those of shares span 0 to 1; all others show the range of the data."
)


def training_section(trainings: tuple[Training, ...]) -> ReportSection:
    """Settings and speed of all stages, then the curves of each."""
    blocks: list[Block] = [_settings(trainings), _speed(trainings), Paragraph(CONVENTION)]
    for training in trainings:
        blocks += [Heading(f"{training.name} ({training.objective})"), Charts(line_charts(training))]
        blocks += [Paragraph(note) for note in _notes(training)]
    return ReportSection("training", "Training", tuple(blocks))


def _settings(trainings: tuple[Training, ...]) -> Table:
    columns = (
        "stage", "objective", "starts from", "steps", "rows per step", "tokens per row", "optimizer",
        "peak learning rate", "schedule", "of the objective",
    )  # fmt: skip
    rows = tuple(
        (training.name, training.objective, _start(training), *_settings_of(training.settings), _own(training))
        for training in trainings
    )
    return Table("Settings", columns, rows, (*columns[3:6], "peak learning rate"))


def _start(training: Training) -> str:
    if training.start is not None:
        return training.start
    return "fresh weights" if training.bundle_hash is None else f"bundle {training.bundle_hash[:12]}"


def _settings_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = (count(settings[name]) for name in ("steps", "global_batch_size", "seq_len"))
    optimizer = settings["optimizer"]
    rate = f"{optimizer['learning_rate']:g}"
    return (*sizes, optimizer["name"], rate, _schedule(optimizer["schedule"]))


def _own(training: Training) -> str:
    """The settings that are specific to the stage's objective, without empty ones."""
    fields = objective_kind(training.objective).settings.model_fields
    own = {name: training.settings.get(name) for name in fields if name not in TrainConfig.model_fields}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in own.items() if value not in (None, {}))


def _speed(trainings: tuple[Training, ...]) -> Table:
    columns = ("stage", "tokens", "last loss", "tokens/s", "FLOPs per token", "matmul peak", "devices", "MFU",
               "FLOPs per core-second")  # fmt: skip
    return Table("Speed", columns, tuple(map(_speed_of, trainings)), columns[1:])


def _speed_of(training: Training) -> tuple[str, ...]:
    stats, per_core = training.stats, training.flops_per_core_s
    return (
        training.name,
        count(stats["tokens"]),
        significant(stats["loss"]),
        count(stats["tokens_per_s"]),
        flops(training.flops_per_token),
        f"{flops(stats['matmul_peak_flops'])}/s",
        count(training.num_devices),
        share(training.utilisation),
        "" if per_core is None else flops(per_core),
    )


def _schedule(schedule: Mapping[str, Any]) -> str:
    kind = {"wsd": "warm-up, stable, decay"}.get(schedule["kind"], schedule["kind"])
    warmup = f"{count(schedule['warmup_steps'])} steps of warm-up"
    return f"{kind}: {warmup}" + (
        f", decay over the last {100 * schedule['decay_share']:g}\u00a0%" if schedule["kind"] == "wsd" else ""
    )


def _notes(training: Training) -> Iterator[str]:
    """Yields notes that explain the stage's curves."""
    if "eval_bytes" in training.settings:
        yield (
            f"During training held-out text is measured on its first documents only, about "
            f"{size(training.settings['eval_bytes'])}; the evaluation measures all of it."
        )
    if replayed := training.settings.get("replay_share"):
        yield (
            f"The training loss is of chat rows and {100 * replayed:g} % of rows of pre-training text, replayed; the "
            "held-out loss is of chat rows alone."
        )
    if dropped := training.stats.get("dropped"):
        yield f"Rows that could not be learned from: {counts(dropped)}."
