"""Evaluations before and after each stage, with intervals, and the baselines."""

from lifecycle.evals.statistics import Comparison
from lifecycle.report.blocks import Block, Charts, IntervalChart, Measure, Paragraph, ReportSection, Table
from lifecycle.report.format import count, difference, interval, significant
from lifecycle.report.numbers import TRAINED, Numbers, Task

ON_INTERVALS = (
    "Intervals are of 95 %. Those of a value speak of other rows of the same kind; those of a difference, paired on "
    "the same rows, tell whether something changed, and are often much narrower."
)


def evaluation_section(numbers: Numbers) -> ReportSection:
    blocks: list[Block] = []
    if numbers.tasks:
        blocks += [_results(numbers.tasks), _changes(numbers.tasks)]
    blocks.append(_baselines(numbers))
    blocks += [Paragraph(ON_INTERVALS), Charts(tuple(_chart(task, numbers) for task in numbers.tasks))]
    skipped = [(task.name, line) for task in numbers.tasks for line in task.final.skipped]
    if skipped:
        blocks.append(Table("Rows that do not fit the context", ("task", "row"), tuple(skipped), folded=True))
    return ReportSection("evaluation", "Evaluation", tuple(blocks))


def _results(tasks: tuple[Task, ...]) -> Table:
    after = tuple(f"after {title}" for title in TRAINED.values())
    columns = ("task", "measure", "better", "rows", "chance", *after)
    rows = []
    for task in tasks:
        final = task.final
        values = [interval(r.mean, r.low, r.high) for r in (task.results[stage] for stage in TRAINED)]
        rows.append((
            task.name, final.metric.replace("_", " "), "higher" if final.higher_is_better else "lower", count(final.n),
            "" if task.chance is None else significant(task.chance, 3), *values,
        ))  # fmt: skip
    return Table("Results [95 % interval]", columns, tuple(rows), ("rows", "chance", *after))


def _changes(tasks: tuple[Task, ...]) -> Table:
    columns = ("task", *(f"by {TRAINED[stage]}" for stage in tasks[0].changes), "test")
    rows = []
    for task in tasks:
        tests = dict.fromkeys(change.test for change in task.changes.values())
        rows.append((task.name, *(_difference(change) for change in task.changes.values()), ", ".join(tests)))
    return Table("Changes, on the same rows [95 % interval]", columns, tuple(rows), columns[1:-1])


def _baselines(numbers: Numbers) -> Table:
    measured = numbers.baselines[0].against
    after = tuple(f"model minus it, after {TRAINED[stage]}" for stage in measured)
    columns = ("baseline", "tokens it saw", "bits per byte", *after)
    rows = []
    for baseline in numbers.baselines:
        r, against = baseline.result, baseline.against.values()
        differences = (_difference(comparison) for comparison in against)
        rows.append((baseline.name, count(baseline.tokens), interval(r.mean, r.low, r.high), *differences))
    caption = "Interpolated Witten-Bell token trigrams, same tokenizer and held-out text [95 % interval]"
    return Table(caption, columns, tuple(rows), columns[1:])


def _chart(task: Task, numbers: Numbers) -> IntervalChart:
    measures = [
        Measure(f"after {TRAINED[stage]}", result.mean, result.low, result.high)
        for stage, result in task.results.items()
    ]
    if task is numbers.text_task:
        results = ((baseline.name, baseline.result) for baseline in numbers.baselines)
        measures += [Measure(name, r.mean, r.low, r.high, is_baseline=True) for name, r in results]
    low = 0.0 if task.final.interval == "Wilson" else None  # a share
    mark = None if task.chance is None else ("chance", task.chance)
    return IntervalChart(task.name, task.final.metric.replace("_", " "), tuple(measures), mark, low)


def _difference(comparison: Comparison) -> str:
    return difference(comparison.difference, comparison.low, comparison.high)
