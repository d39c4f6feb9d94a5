"""The three training stages: what was done, how fast, and the curves."""

from collections.abc import Iterator, Mapping
from typing import Any

from lifecycle.report.blocks import Block, Charts, Heading, LineChart, Paragraph, ReportSection, Series, Table
from lifecycle.report.format import count, counts, flops, share, significant, size
from lifecycle.report.numbers import TRAINED, Numbers, Training

# title, unit, (metric in the log, name in the drawing); a drawing whose metrics a stage does not log is left out
CURVES = (
    ("Loss", "nats", (("loss", "training"), ("heldout_loss", "held out"))),
    ("Held-out text during training", "bits per byte", (("heldout_bits_per_byte", "held out"),)),
    (
        "Preference accuracy",
        "share of pairs",
        (
            ("accuracy", "training"),
            ("heldout_accuracy", "held out"),
            ("heldout_likelihood_accuracy", "held out, by likelihood"),
        ),
    ),
    ("Preference margin", "chosen minus rejected", (("margins", "training"), ("heldout_margins", "held out"))),
    (
        "Held-out log-probabilities",
        "nats per answer",
        (("heldout_logprobs_chosen", "chosen"), ("heldout_logprobs_rejected", "rejected")),
    ),
    ("Learning rate", "per step", (("learning_rate", "learning rate"),)),
    ("Gradient norm", "before clipping", (("grad_norm", "gradient norm"),)),
    ("Throughput", "tokens per second", (("tokens_per_s", "tokens/s"),)),
)
# by title, the values that the axis reaches at least: amounts begin at zero, shares go from 0 to 1
AXES = {"Preference accuracy": (0, 1), "Learning rate": (0,), "Gradient norm": (0,), "Throughput": (0,)}
CONVENTION = (
    "FLOPs are the model's own, three times a forward pass for each token trained on, causal attention counted half. "
    "MFU is those of the median logging interval's wall time, over the rate of one large matrix product that the stage "
    "measures on a device after its last step, times the mesh's devices. Other programs on the machine lower it; FLOPs "
    "per core-second, of the steps alone, they lower little."
)


def training_section(numbers: Numbers) -> ReportSection:
    blocks: list[Block] = [_settings(numbers), _speed(numbers), Paragraph(CONVENTION)]
    for training in numbers.trainings:
        blocks += [Heading(TRAINED[training.stage].capitalize()), Charts(tuple(charts(training)))]
        blocks += [Paragraph(note) for note in _notes(training)]
    return ReportSection("training", "Training", tuple(blocks))


def charts(training: Training) -> list[LineChart]:
    drawn = []
    for title, unit, metrics in CURVES:
        series = tuple(
            Series(name, training.curves[metric], dots=metric.startswith("heldout"))
            for metric, name in metrics
            if metric in training.curves
        )
        if series:
            drawn.append(LineChart(title, unit, series, *AXES.get(title, ())))
    return drawn


def _settings(numbers: Numbers) -> Table:
    columns = ("stage", "steps", "rows a step", "tokens a row", "optimizer", "peak learning rate", "schedule", "more")
    rows = tuple((TRAINED[t.stage], *_settings_of(t.settings)) for t in numbers.trainings)
    return Table("Settings", columns, rows, (*columns[1:4], "peak learning rate"))


def _settings_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = (count(settings[name]) for name in ("steps", "global_batch_size", "seq_len"))
    optimizer = settings["optimizer"]
    rate = f"{optimizer['learning_rate']:g}"
    return (*sizes, optimizer["name"], rate, _schedule(optimizer["schedule"]), _more(settings))


def _speed(numbers: Numbers) -> Table:
    columns = ("stage", "tokens", "last loss", "tokens/s", "FLOPs a token", "matmul peak", "devices", "MFU",
               "FLOPs per core-second")  # fmt: skip
    return Table("Speed", columns, tuple(_speed_of(training) for training in numbers.trainings), columns[1:])


def _speed_of(training: Training) -> tuple[str, ...]:
    stats, per_core = training.stats, training.flops_per_core_s
    return (
        TRAINED[training.stage],
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
        f", decay over the last {100 * schedule['decay_share']:g} %" if schedule["kind"] == "wsd" else ""
    )


def _more(settings: Mapping[str, Any]) -> str:
    shown = {
        "objective": "",
        "beta": "beta ",
        "sft_weight": "weight of the chosen answers' loss ",
        "replay_share": "share of replayed text ",
    }
    return ", ".join(f"{label}{settings[name]}" for name, label in shown.items() if settings.get(name))


def _notes(training: Training) -> Iterator[str]:
    """What a reader of the stage's curves should know."""
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
