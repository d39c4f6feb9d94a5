"""Which metrics of a training stage's log are plotted, in which charts, and on which axis.

Objectives share the names of their metrics, so a chart is chosen by the metrics that a stage logs, not by the stage. A
metric without a chart here is plotted under its own name.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lifecycle.evals.results import CHANCE, STDERR
from lifecycle.report.blocks import LineChart, Series, Span
from lifecycle.report.trained import Training
from lifecycle.training.metric_names import HELD_OUT, TASK_METRIC, is_of_task

MODULES = "mtp_loss_"  # with a prediction module's number behind it
BITS = "heldout_bits_per_byte"  # with `.SOURCE` behind it: of the documents of one source


@dataclass(frozen=True)
class Curves:
    """A chart: metrics and their names in it."""

    title: str
    unit: str
    metrics: dict[str, str]
    axis: Span = "data"
    errors: Mapping[str, str] = field(default_factory=dict)  # by metric: the metric that is its standard error


OF_OBJECTIVES = (
    Curves("Loss", "nats", {"loss": "training", "heldout_loss": "held out"}),
    Curves("Held-out text during training", "bits per byte", {"heldout_bits_per_byte": "held out"}),
    Curves(
        "Preference accuracy",
        "share of pairs",
        {
            "rewards/accuracies": "training",
            "heldout_rewards/accuracies": "held out",
            "heldout_likelihood_accuracy": "held out, by likelihood",
        },
        axis="share",
    ),
    Curves(
        "Preference margin",
        "chosen minus rejected",
        {"rewards/margins": "training", "heldout_rewards/margins": "held out"},
    ),
    Curves(
        "Held-out log-probabilities",
        "nats per answer",
        {"heldout_logps/chosen": "chosen", "heldout_logps/rejected": "rejected"},
    ),
)
OF_TOKENS = (
    Curves(
        "Accuracy of tokens",
        "share of learned tokens that are the likeliest",
        {"mean_token_accuracy": "training", "heldout_mean_token_accuracy": "held out"},
        axis="share",
    ),
)
OF_REWARD_MODELS = (
    Curves(
        "Rewards of answers",
        "as the model scores them",
        {
            "mean_reward": "mean",
            "min_reward": "lowest",
            "max_reward": "highest",
            "heldout_mean_reward": "held out, mean",
        },
    ),
)
OF_POLICIES = (
    Curves("Reward", "mean of completions", {"reward": "sampled", "heldout_reward": "held out, likeliest"}),
    Curves(
        "Spread of rewards",
        "standard deviation",
        {"reward_std": "of all", "reward_std_in_groups": "within a group, mean"},
        axis="amount",
    ),
    Curves(
        "Completions that teach little",
        "share",
        {
            "frac_reward_zero_std": "groups with equal rewards",
            "completions/clipped_ratio": "cut off",
            "frac_unscored": "without a reward",
        },
        axis="share",
    ),
    Curves(
        "Length of completions",
        "tokens",
        {
            "completions/mean_length": "mean",
            "completions/min_length": "shortest",
            "completions/max_length": "longest",
            "completions/mean_terminated_length": "mean of those that ended",
            "heldout_completions/mean_length": "held out, mean",
        },
        axis="amount",
    ),
    Curves("Divergence from the initial model", "as the objective estimates it", {"kl": "kl"}),
    Curves("Entropy", "nats per token", {"entropy": "training", "heldout_entropy": "held out"}),
    Curves(
        "Sampler and trainer",
        "nats per token, difference of log-probabilities",
        {
            "sampling/sampling_logp_difference/mean": "mean",
            "sampling/sampling_logp_difference/max": "largest",
        },
        axis="amount",
    ),
    Curves(
        "Weights for the sampler's difference",
        "ratio of trainer and sampler, at most sampler_cap",
        {
            "sampling/importance_sampling_ratio/mean": "mean",
            "sampling/importance_sampling_ratio/min": "smallest",
            "sampling/importance_sampling_ratio/max": "largest",
        },
        axis="amount",
    ),
    Curves(
        "Clipped ratios",
        "share of tokens, or of completions if ratios are theirs",
        {
            "clip_ratio/region_mean": "all",
            "clip_ratio/low_mean": "below",
            "clip_ratio/high_mean": "above",
            "clip_ratio/low_min": "below, least of a completion",
            "clip_ratio/high_max": "above, most of a completion",
            "cispo_clip_ratio": "above (cispo)",
        },
        axis="share",
    ),
    Curves("Age of a step's completions", "steps since they began", {"sampling/staleness": "mean"}, axis="amount"),
    Curves(
        "Completions in pieces",
        "in a step",
        {"sampling/rounds": "pieces of each", "sampling/carried_groups": "groups that go on"},
        axis="amount",
    ),
    Curves("Steps on own answers", "1, or 0 on the rows' answers", {"on_policy": "on policy"}, axis="share"),
    Curves("Micro-batches with something to learn", "share", {"frac_computed": "computed"}, axis="share"),
    Curves("Time of a step's completions", "seconds", {"generation_s": "sampled", "reward_s": "scored"}, axis="amount"),
)
OF_EXPERTS = (
    Curves(
        "Experts' load in a step",
        "times an even load",
        {
            "expert_load_max": "busiest expert, worst layer",
            "router_max_load": "busiest expert, mean of the layers",
            "expert_load_min": "idlest expert, worst layer",
        },
        axis="amount",
    ),
    Curves("Experts that no token chose", "of all layers, in a step", {"experts_idle": "experts"}, axis="amount"),
)
OF_STEPS = (
    Curves("Learning rate", "per step", {"learning_rate": "learning rate"}, axis="amount"),
    Curves("Gradient norm", "before clipping", {"grad_norm": "gradient norm"}, axis="amount"),
    Curves("Update norm", "per step", {"update_norm": "update norm"}, axis="amount"),
    Curves("Throughput", "tokens per second", {"tokens_per_s": "tokens/s"}, axis="amount"),
    Curves("Saving", "seconds that training stood still", {"save_stall_s": "checkpoint"}, axis="amount"),
)
MEASURED = (*OF_OBJECTIVES, *OF_TOKENS, *OF_REWARD_MODELS, *OF_POLICIES)  # also on held-out rows
# Metrics that show nothing as curves, that others tell too, and parts of preference metrics: a margin is the difference
# of two rewards.
NOT_DRAWN = {
    "count", "heldout_count", "cpu_s", "compile_s", "faults_in_row", "likelihood_accuracy", "num_tokens", "step_time",
    "entropy_coef", "heldout_min_reward", "heldout_max_reward",
    "completions/min_terminated_length", "completions/max_terminated_length",
    "logps/chosen", "logps/rejected",
    "rewards/chosen", "rewards/rejected", "heldout_rewards/chosen", "heldout_rewards/rejected",
    "logits/chosen", "logits/rejected", "heldout_logits/chosen", "heldout_logits/rejected",
}  # fmt: skip
NAMED = {metric for curves in (*MEASURED, *OF_EXPERTS, *OF_STEPS) for metric in curves.metrics} | NOT_DRAWN


def charts_of(metric: str) -> tuple[str, str, Span]:
    """(title, unit, axis) of a chart that shows one metric alone, of several runs."""
    for curves in (*MEASURED, *OF_EXPERTS, *OF_STEPS):
        if (name := curves.metrics.get(metric)) is not None:
            return (f"{curves.title}, {name}" if len(curves.metrics) > 1 else curves.title), curves.unit, curves.axis
    if metric.startswith(f"{BITS}."):
        return f"Held-out text of {metric.removeprefix(f'{BITS}.')}", "bits per byte", "data"
    if is_of_task(metric):
        task, _, name = metric.partition(TASK_METRIC)
        return task, name.replace("_", " "), "data"
    return metric.replace("_", " "), "as logged", "data"


def is_drawn(metric: str) -> bool:
    """Whether a metric is drawn when runs are compared."""
    return metric not in NOT_DRAWN and not (is_of_task(metric) and metric.endswith((STDERR, f"{TASK_METRIC}{CHANCE}")))


def is_measured(metric: str) -> bool:
    """Whether a metric is of a measurement between steps, on held-out rows or a task."""
    return metric.startswith(HELD_OUT) or is_of_task(metric)


def own_metrics(metrics: Iterable[str]) -> dict[str, str]:
    """Each measured task's own metric, by the task's name: the one that has a standard error."""
    found = (metric.removesuffix(STDERR) for metric in metrics if is_of_task(metric) and metric.endswith(STDERR))
    return {metric.partition(TASK_METRIC)[0]: metric for metric in found}


def line_charts(training: Training) -> tuple[LineChart, ...]:
    """A stage's charts: those of its objective, of further metrics, and of the steps."""
    grouped = (*_rewards(training), *_modules(training), *_domains(training), *_tasks(training))
    all_curves = (*MEASURED, *grouped, *OF_EXPERTS, *_further(training), *OF_STEPS)
    charts = (_chart(curves, training) for curves in all_curves)
    return tuple(chart for chart in charts if chart.series)


def held_out_ends(training: Training) -> Iterator[tuple[str, float, float]]:
    """Yields (name, first value, last value) of each held-out metric that is drawn."""
    for curves in (*MEASURED, *_rewards(training), *_further(training)):
        for metric, name in curves.metrics.items():
            if metric.startswith(HELD_OUT) and (points := training.curves.get(metric)):
                label = f"{curves.title}, {name}" if len(curves.metrics) > 1 else curves.title
                yield label, points[0][1], points[-1][1]


def has_held_out(training: Training) -> bool:
    """Whether anything that is drawn is measured on held-out rows."""
    return any(True for _ in held_out_ends(training))


def _chart(curves: Curves, training: Training) -> LineChart:
    series = tuple(
        Series(
            name,
            training.curves[metric],
            dots=is_measured(metric),
            errors=training.curves.get(curves.errors.get(metric, ""), ()),
        )
        for metric, name in curves.metrics.items()
        if metric in training.curves
    )
    return LineChart(curves.title, curves.unit, series, curves.axis)


def _rewards(training: Training) -> Iterator[Curves]:
    """Yields a chart for each reward of completions: its mean and its spread."""
    for metric in training.curves:
        if metric.startswith("rewards/") and metric.endswith("/mean"):
            name, of = metric.removeprefix("rewards/").removesuffix("/mean"), metric.removesuffix("mean")
            both = {metric: "mean", f"{of}std": "standard deviation", f"{HELD_OUT}{metric}": "held out, mean"}
            yield Curves(f"Reward {name}", "of completions", both)


def _modules(training: Training) -> Iterator[Curves]:
    """Yields the chart of the prediction modules' losses beside the next token's, if the stage trains modules."""
    own = {metric: f"module {metric.removeprefix(MODULES)}" for metric in training.curves if metric.startswith(MODULES)}
    if own:
        yield Curves("Loss of further tokens", "nats", {"loss": "next token", **own})


def _domains(training: Training) -> Iterator[Curves]:
    """Yields the chart of held-out text by source, if it is measured by source."""
    names = {metric: metric.removeprefix(f"{BITS}.") for metric in training.curves if metric.startswith(f"{BITS}.")}
    if names:
        yield Curves("Held-out text by source", "bits per byte", names)


def _tasks(training: Training) -> Iterator[Curves]:
    """Yields a chart for each task measured during training: its own metric, and chance."""
    for task, metric in own_metrics(training.curves).items():
        name = metric.removeprefix(f"{task}{TASK_METRIC}").replace("_", " ")
        both = {metric: name, f"{task}{TASK_METRIC}{CHANCE}": CHANCE}
        unit = f"{name}, with its standard error"
        yield Curves(f"{task} during training", unit, both, errors={metric: f"{metric}{STDERR}"})


def _further(training: Training) -> Iterator[Curves]:
    """Yields a chart for each metric that has none yet, in training and held out."""
    for name in dict.fromkeys(metric.removeprefix(HELD_OUT) for metric in training.curves if _has_no_chart(metric)):
        both = {name: "training", f"{HELD_OUT}{name}": "held out"}
        yield Curves(name.replace("_", " "), "as logged", {key: both[key] for key in both if _has_no_chart(key)})


def _has_no_chart(metric: str) -> bool:
    is_reward = metric.removeprefix(HELD_OUT).startswith("rewards/") and metric.endswith(("/mean", "/std"))
    is_grouped = metric.startswith((f"{BITS}.", MODULES)) or is_of_task(metric) or is_reward
    return metric not in NAMED and not is_grouped
