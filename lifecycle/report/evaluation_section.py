"""Evaluations before and after each stage, with intervals, and the baselines."""

from collections.abc import Iterator

from lifecycle.evals.results import EvalResult
from lifecycle.evals.statistics import Comparison
from lifecycle.report.blocks import Block, Charts, IntervalChart, Measure, Paragraph, ReportSection, Table
from lifecycle.report.curves import held_out_ends
from lifecycle.report.data_section import contamination_table, hits_of_tasks
from lifecycle.report.evaluated import Baseline, Task
from lifecycle.report.format import count, difference, interval, significant
from lifecycle.report.numbers import Numbers
from lifecycle.report.trained import Training

ON_INTERVALS = (
    "All are 95 % confidence intervals. A value's interval says how it would vary over other rows of the same kind. A "
    "difference is paired on the same rows: its interval says whether something changed, and is often much narrower."
)


def evaluation_section(numbers: Numbers) -> ReportSection:
    """Results, changes, baselines and their drawings."""
    return ReportSection("evaluation", "Evaluation", tuple(_blocks(numbers)))


def _blocks(numbers: Numbers) -> Iterator[Block]:
    if numbers.tasks:
        yield _results(numbers)
        yield from _contamination(numbers)
        yield from _changes(numbers.tasks)
    if numbers.baselines:
        yield _baselines(numbers.baselines)
    yield from _held_out_rows(numbers.trainings)
    if numbers.tasks or numbers.baselines:
        yield Paragraph(ON_INTERVALS)
    if numbers.tasks:
        yield Charts(tuple(_chart(task, numbers) for task in numbers.tasks))
    if skipped := tuple((task.name, line) for task in numbers.tasks for line in task.final.skipped):
        yield Table("Rows that were not scored", ("task", "row and reason"), skipped, folded=True)


def _results(numbers: Numbers) -> Table:
    stages = list(dict.fromkeys(stage for task in numbers.tasks for stage in task.results))
    after = tuple(f"after {stage}" for stage in stages)
    columns = ("task", "measure", "better", "rows", "compare with", *after)
    rows = []
    for task in numbers.tasks:
        final = task.final
        values = (_interval(task.results[stage]) if stage in task.results else "" for stage in stages)
        rows.append((
            task.name, final.metric.replace("_", " "), "higher" if final.higher_is_better else "lower", count(final.n),
            _compare_with(task, numbers), *values,
        ))  # fmt: skip
    return Table("Results [95 % interval]", columns, tuple(rows), ("rows", *after))


def _contamination(numbers: Numbers) -> Iterator[Table]:
    """What of the tasks was in the documents: of those with rows of their own, how much, and which rows in which."""
    results = {task.name: _interval(task.final) for task in numbers.tasks}
    for corpus, data in numbers.data.items():
        if tasks := data.stats["contamination"]["tasks"]:
            yield contamination_table(tasks, results, corpus)
            yield from hits_of_tasks(data.evidence, corpus)


def _compare_with(task: Task, numbers: Numbers) -> str:
    """The score of random guessing, or of the baseline that has read the most."""
    if task.chance is not None:
        return f"chance {significant(task.chance, 3)}"
    if task is numbers.text_task:
        return f"trigram {numbers.baselines[-1].result.mean:.3f}"
    return ""


def _changes(tasks: tuple[Task, ...]) -> Iterator[Table]:
    pairs = list(dict.fromkeys(pair for task in tasks for pair in task.changes))
    if not pairs:
        return
    columns = ("task", *(f"{before} to {after}" for before, after in pairs), "test")
    rows = []
    for task in tasks:
        tests = dict.fromkeys(change.test for change in task.changes.values())
        changes = (_difference(task.changes[pair]) if pair in task.changes else "" for pair in pairs)
        rows.append((task.name, *changes, ", ".join(tests)))
    yield Table("Changes, on the same rows [95 % interval]", columns, tuple(rows), columns[1:-1])


def _baselines(baselines: tuple[Baseline, ...]) -> Table:
    after = tuple(f"model minus baseline, after {stage}" for stage in baselines[0].against)
    columns = ("baseline", "tokens seen", "bits per byte", *after)
    rows = tuple(
        (b.name, count(b.tokens), _interval(b.result), *map(_difference, b.against.values())) for b in baselines
    )
    caption = "Interpolated Witten-Bell token trigrams, same tokenizer and held-out text [95 % interval]"
    return Table(caption, columns, rows, columns[1:])


def _held_out_rows(trainings: tuple[Training, ...]) -> Iterator[Table]:
    """The held-out metrics of the training stages, first and last values."""
    columns = ("stage", "measure", "before", "after")
    rows = tuple(
        (training.name, label, significant(first), significant(last))
        for training in trainings
        for label, first, last in held_out_ends(training)
    )
    if rows:
        caption = "Held-out rows, before and after each training stage"
        yield Table(caption, columns, rows, columns[2:])


def _chart(task: Task, numbers: Numbers) -> IntervalChart:
    measures = [Measure(f"after {stage}", r.mean, r.low, r.high) for stage, r in task.results.items()]
    if task is numbers.text_task:
        results = ((baseline.name, baseline.result) for baseline in numbers.baselines)
        measures += [Measure(name, r.mean, r.low, r.high, is_baseline=True) for name, r in results]
    mark = None if task.chance is None else ("chance", task.chance)
    axis = "share" if task.final.interval == "Wilson" else "data"
    return IntervalChart(task.name, task.final.metric.replace("_", " "), tuple(measures), mark, axis)


def _interval(result: EvalResult) -> str:
    return interval(result.mean, result.low, result.high)


def _difference(comparison: Comparison) -> str:
    return difference(comparison.difference, comparison.low, comparison.high)
