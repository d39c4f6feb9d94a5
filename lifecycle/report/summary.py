"""The summary: the model, whether it learned, and its cost."""

from collections.abc import Iterator

from lifecycle.evals.statistics import Comparison
from lifecycle.report.blocks import Block, Headline, Paragraph, ReportSection, Tile
from lifecycle.report.evaluated import Baseline, Task
from lifecycle.report.format import count, difference, duration, share, significant, size
from lifecycle.report.numbers import Numbers
from lifecycle.report.trained import Training
from lifecycle.training.objectives.registry import objective_kind
from lifecycle.training.preference import ReferencedConfig


def summary_section(numbers: Numbers) -> ReportSection:
    """The model in a few sentences, the main numbers, and the comparison with the baselines."""
    blocks: list[Block] = [Paragraph(" ".join(_what(numbers))), Headline(tuple(_tiles(numbers)))]
    if numbers.text_task is not None:
        blocks.append(Paragraph(" ".join(_findings(numbers.text_task, numbers.baselines))))
    return ReportSection("summary", "Summary", tuple(blocks))


def side(comparison: Comparison, higher_is_better: bool) -> str:
    """Which side of the baseline the interval of the difference is on."""
    if comparison.low <= 0 <= comparison.high:
        return "not distinguishable from"
    return "better than" if (comparison.difference > 0) == higher_is_better else "worse than"


def _what(numbers: Numbers) -> Iterator[str]:
    model = numbers.model
    yield (
        f"A model of {count(numbers.parameters)} parameters: {model.num_layers} layers, d_model {model.d_model}, "
        f"{model.num_heads} query and {model.num_kv_heads} key-value heads, a context of {count(model.max_seq_len)} "
        "tokens."
    )
    for corpus, data in numbers.data.items():
        read, sources = data.funnel[0], ", ".join(data.stats["sources"])
        made = f"{corpus} is made" if corpus else "Made"
        yield f"{made} from {count(read['files_in'])} files ({size(read['bytes_in'])}) of {sources}."
    first = next(iter(numbers.trainings), None)
    if first is not None and numbers.tokens is not None and objective_kind(first.objective).rows == "tokens":
        train, tokens = numbers.tokens["splits"]["train"]["tokens"], first.stats["tokens"]
        yield f"Of {count(train)} training tokens {first.name} read {count(tokens)} ({share(tokens / train)})."
    stages = ", ".join(f"{training.name} ({training.objective})" for training in numbers.trainings)
    yield f"Training stages: {stages or 'none is finished'}."


def _tiles(numbers: Numbers) -> Iterator[Tile]:
    if numbers.text_task is not None:
        yield from _text_tiles(numbers.text_task, numbers.baselines)
    yield from (_task_tile(task) for task in numbers.tasks if task is not numbers.text_task)
    yield from _preference_tiles(numbers.trainings)
    for first in numbers.trainings[:1]:
        yield Tile("MFU", share(first.utilisation), f"of the {first.peak}, {first.name}")
    price = numbers.price
    yield Tile("wall time", duration(numbers.wall_s), f"{count(numbers.core_s)} core-seconds")
    yield Tile("cost", significant(numbers.money), f"{price.currency}, at {price.core_hour:g} per core-hour")


def _text_tiles(text: Task, baselines: tuple[Baseline, ...]) -> Iterator[Tile]:
    for stage in dict.fromkeys((text.first, text.last)):
        r = text.results[stage]
        yield Tile(f"bits per byte after {stage}", f"{r.mean:.3f}", f"{r.low:.3f} to {r.high:.3f}")
    for baseline in baselines:
        yield Tile(baseline.name, f"{baseline.result.mean:.3f}", f"bits per byte; {count(baseline.tokens)} tokens")


def _task_tile(task: Task) -> Tile:
    r = task.final
    chance = "" if task.chance is None else f"; chance {task.chance:.3f}"
    return Tile(f"{task.name}: {r.metric.replace('_', ' ')}", f"{r.mean:.3f}", f"{r.low:.3f} to {r.high:.3f}{chance}")


def _preference_tiles(trainings: tuple[Training, ...]) -> Iterator[Tile]:
    for training in trainings:
        if points := training.curves.get("heldout_rewards/accuracies"):
            # an objective with a reference compares with its initial model: before training, all pairs tie
            is_relative = issubclass(objective_kind(training.objective).settings, ReferencedConfig)
            remark = "50 % before, by definition" if is_relative else ""
            yield Tile(f"held-out preference accuracy, {training.name}", share(points[-1][1]), remark)


def _findings(text: Task, baselines: tuple[Baseline, ...]) -> Iterator[str]:
    verdicts = "; ".join(_verdict(baseline, text.first) for baseline in baselines)
    yield f"On held-out text, after {text.first}: {verdicts}."
    if text.last != text.first:
        change = text.final.mean / text.results[text.first].mean - 1
        direction = "rose" if change > 0 else "fell"
        yield f"From {text.first} to {text.last} its bits per byte {direction} by {share(abs(change))}."


def _verdict(baseline: Baseline, stage: str) -> str:
    c = baseline.against[stage]
    reached = difference(c.difference, c.low, c.high)
    return f"{side(c, baseline.result.higher_is_better)} the {baseline.name} (difference {reached} bits per byte)"
