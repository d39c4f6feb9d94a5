"""What the names of logged metrics say: where they were measured, and of what."""

HELD_OUT = "heldout_"  # prefix of metrics measured on held-out rows
TASK_METRIC = "/"  # in the name of a metric of a task: `arc_easy/accuracy`
# What objectives' metrics begin with under TRL's names (`rewards/margins`): no names of tasks.
METRIC_GROUPS = ("rewards", "logps", "logits", "clip_ratio", "vespo", "completions", "sampling", "logged")


def is_of_task(metric: str) -> bool:
    """Whether a metric is of a task. One on held-out rows may have a source's name behind it, with any characters."""
    group, is_grouped, _ = metric.partition(TASK_METRIC)
    return bool(is_grouped) and group not in METRIC_GROUPS and not metric.startswith(HELD_OUT)
