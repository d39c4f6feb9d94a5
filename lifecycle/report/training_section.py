"""The section on training: settings, speed and curves of each stage."""

from collections.abc import Iterator, Mapping
from typing import Any

from lifecycle.core.config_changes import said
from lifecycle.core.timesheet import CAUSES, DOWN, LOST, STEPS, Account
from lifecycle.report.blocks import Block, Charts, Heading, Paragraph, ReportSection, Table
from lifecycle.report.curves import line_charts
from lifecycle.report.format import count, counts, duration, flops, share, significant, size
from lifecycle.report.trained import Training
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.registry import objective_kind

CONVENTION = (
    "FLOPs are the model's own: three forward passes per training token, causal attention counted at half. MFU "
    "divides the FLOPs per second of the median logging interval (wall time) by one device's matmul peak times the "
    "number of devices. The peak is the vendor's, in bfloat16, where the chip's name is with it; else it is the "
    "rate of one large matrix product, measured on one device before the steps of a process's first stage. Other "
    "programs on the machine lower MFU; they change FLOPs per core-second only a little. All cover the steps alone, "
    "without compilation and measurements; a checkpoint is written during the steps after it, and a process's first "
    "step includes the first run of its program, which takes longer. Axes of learning rates, gradient norms and "
    "throughputs start at 0 and those of shares span 0 to 1; all others show the range of the data."
)


CAUSES_SAID = (
    "The wall time runs from the start of the stage's first process to its last record, through every restart. "
    "Goodput is the share of it in steps whose result was kept. Lost steps ran again after a restart, or were "
    "given up when the run went back from a faulty step; down is the time in which no process worked on the stage, and "
    "what a killed one did after its last record. Data is reading "
    "and packing rows; loader is the time for which no step ran because a batch was late. Of a stage that learns from "
    "rewards that is told apart: generation of completions, logprobs of them by older and initial weights, reward, and "
    "waiting for rewards that are found beside sampling and steps; what goes on beside a step is in the steps. Step "
    "times are of the newest 100 steps, without a process's first. Memory is what the fullest device used at most, "
    "or, where the devices report none of their own, what the process had at its last record."
)


def training_section(trainings: tuple[Training, ...]) -> ReportSection:
    """Settings and speed of all stages, then the curves of each."""
    blocks: list[Block] = [_settings(trainings), _speed(trainings), Paragraph(CONVENTION)]
    if any("mixture" in training.stats for training in trainings):
        blocks.append(_mixtures(trainings))
    if any(training.watched.sessions for training in trainings):
        blocks += [_wall_time(trainings), Paragraph(CAUSES_SAID)]
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
        (training.name, training.objective, _start(training), *_settings_of(training), _own(training))
        for training in trainings
    )
    return Table("Settings", columns, rows, (*columns[3:6], "peak learning rate"))


def _start(training: Training) -> str:
    if (goes_on := training.stats.get("goes_on")) is not None:
        return f"{goes_on['stage']}@{goes_on['step']}"
    if training.start is not None:
        return training.start
    return "fresh weights" if training.bundle_hash is None else f"bundle {training.bundle_hash[:12]}"


def _settings_of(training: Training) -> tuple[str, ...]:
    settings = training.settings
    sizes = (count(settings[name]) for name in ("global_batch_size", "seq_len"))
    optimizer = settings["optimizer"]
    rate = f"{optimizer['learning_rate']:g}"
    epochs = "" if settings.get("epochs") is None else f" ({settings['epochs']:g} epochs)"
    return (
        f"{count(training.stats['steps'])}{epochs}",
        *sizes,
        optimizer["name"],
        rate,
        _schedule(optimizer["schedule"]),
    )


def _own(training: Training) -> str:
    """The settings that are specific to the stage's objective, without empty ones."""
    fields = objective_kind(training.objective).settings.model_fields
    own = {name: training.settings.get(name) for name in fields if name not in TrainConfig.model_fields}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in own.items() if value not in (None, {}))


def _mixtures(trainings: tuple[Training, ...]) -> Table:
    """The shares of the sources, as they came out, and how often each is read in the stage's own steps."""
    columns = ("stage", "source", "tokens", "share of the rows", "epochs")
    rows = tuple(
        (training.name, source, count(of["tokens"]), share(of["share"]), f"{of['epochs']:,.2f}")
        for training in trainings
        for source, of in training.stats.get("mixture", {}).items()
    )
    return Table("Mixtures", columns, rows, columns[2:])


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
        f"{flops(stats['matmul_peak_flops'])}/s" + (f" ({stats['peak_chip']})" if "peak_chip" in stats else ""),
        count(training.num_devices),
        share(training.utilisation),
        "" if per_core is None else flops(per_core),
    )


def _wall_time(trainings: tuple[Training, ...]) -> Table:
    """Where the wall time of each stage went, a column for each; a cause that no stage has is left out."""
    stages = [training.watched for training in trainings if training.watched.sessions]
    sheets = [stage.account for stage in stages]
    known = {cause for sheet in sheets for cause, seconds in sheet.seconds.items() if seconds >= 0.05}
    causes = [cause for cause in (STEPS, *CAUSES, LOST, DOWN) if cause in known]
    times = [stage.step_times for stage in stages]
    rows = (
        ("wall time", *(duration(sheet.wall_s) for sheet in sheets)),
        ("goodput", *(share(sheet.goodput) for sheet in sheets)),
        *((cause, *(_part(sheet, cause) for sheet in sheets)) for cause in causes),
        *((f"step time, {p}", *(f"{t[p]:.3g} s" if t else "" for t in times)) for p in ("p50", "p90", "p99")),
        ("memory", *(size(stage.memory_bytes) if stage.memory else "" for stage in stages)),
        ("failures", *(", ".join(sheet.failures) or "none" for sheet in sheets)),
    )
    names = tuple(stage.name for stage in stages)
    return Table("Where the wall time went", ("what", *names), rows, names)


def _part(sheet: Account, cause: str) -> str:
    """The time that a cause took, and its share of the wall time."""
    seconds = sheet.seconds.get(cause, 0.0)
    return f"{duration(seconds)} ({share(seconds / sheet.wall_s)})" if seconds and sheet.wall_s else duration(seconds)


def _schedule(schedule: Mapping[str, Any]) -> str:
    kind = {"wsd": "warm-up, stable, decay"}.get(schedule["kind"], schedule["kind"])
    warmup = f"{count(schedule['warmup_steps'])} steps of warm-up"
    return f"{kind}: {warmup}" + (
        f", decay over the last {100 * schedule['decay_share']:g}\u00a0%" if schedule["kind"] == "wsd" else ""
    )


def _notes(training: Training) -> Iterator[str]:
    """Yields warnings, and notes that explain the stage's curves."""
    yield from (f"Warning, {remark}." for remark in training.watched.remarks)
    if (goes_on := training.stats.get("goes_on")) is not None:
        yield f"Goes on from step {goes_on['step']} of {goes_on['stage']} with {said(goes_on['settings'])}."
    if "eval_bytes" in training.session:
        yield (
            f"During training held-out text is measured on the first documents of each source only, about "
            f"{size(training.session['eval_bytes'])} in all, the same amount of each; the evaluation "
            "measures all of it, so that the two differ where sources differ in size."
        )
    if measured := training.stats.get("measured_tasks"):
        counts_of = ", ".join(f"{name} on {rows}" for name, rows in measured.items())
        yield f"During training tasks are measured: {counts_of}. The band is one standard error to either side."
    if replayed := training.settings.get("replay_share"):
        yield (
            f"The training loss is of chat rows and {100 * replayed:g} % of rows of pre-training text, replayed; the "
            "held-out loss is of chat rows alone."
        )
    if dropped := training.stats.get("dropped"):
        examples = "; ".join(training.stats["dropped_examples"])
        yield f"Rows that could not be learned from: {counts(dropped)}. The first: {examples}."
    if truncated := training.stats.get("truncated"):
        yield f"Rows that were cut to fit ({training.settings['truncation']}): {count(truncated)}."
