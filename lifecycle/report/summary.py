"""The report's beginning: what was made, whether it learned, what it cost."""

from lifecycle.evals.statistics import Comparison
from lifecycle.report.blocks import Block, Headline, Paragraph, ReportSection, Tile
from lifecycle.report.format import count, difference, duration, share, significant, size
from lifecycle.report.numbers import TRAINED, Baseline, Numbers, Task, Training


def summary_section(numbers: Numbers) -> ReportSection:
    blocks: list[Block] = [Paragraph(_what(numbers)), Headline(tuple(_tiles(numbers)))]
    if numbers.text_task is not None:
        verdicts = [_verdict(baseline) for baseline in numbers.baselines]
        blocks.append(
            Paragraph(f"On held-out text, after pre-training: {'; '.join(verdicts)}. {_kept(numbers.text_task)}")
        )
    return ReportSection("summary", "Summary", tuple(blocks))


def side(comparison: Comparison, higher_is_better: bool) -> str:
    """On which side of the baseline the whole interval of the difference lies."""
    if comparison.low <= 0 <= comparison.high:
        return "not distinguishable from"
    return "better than" if (comparison.difference > 0) == higher_is_better else "worse than"


def _what(numbers: Numbers) -> str:
    model, pretrain = numbers.model, numbers.trainings[0]
    read, train = numbers.funnel[0], numbers.tokens["splits"]["train"]
    sources = ", ".join(numbers.data.stats["sources"])
    return (
        f"A chat model of {count(numbers.parameters)} parameters: {model.num_layers} layers, d_model {model.d_model}, "
        f"{model.num_heads} query and {model.num_kv_heads} key-value heads, a context of {count(model.max_seq_len)} "
        "tokens. "
        f"Made from {count(read['files_in'])} files ({size(read['bytes_in'])}) of {sources}: "
        f"{count(train['tokens'])} training tokens, of which pre-training read {count(pretrain.stats['tokens'])} "
        f"({share(pretrain.stats['tokens'] / train['tokens'])})."
    )


def _tiles(numbers: Numbers) -> list[Tile]:
    tiles = [] if numbers.text_task is None else _text_tiles(numbers, numbers.text_task)
    tiles += [_task_tile(task) for task in numbers.tasks if task is not numbers.text_task]
    tiles += _preference_tile(numbers.trainings[-1])
    pretrain, price = numbers.trainings[0], numbers.price
    peak = "of the measured matmul rate, pre-training"
    return [
        *tiles,
        Tile("MFU", share(pretrain.utilisation), peak),
        Tile("wall time", duration(numbers.wall_s), f"{count(numbers.core_s)} core-seconds"),
        Tile("cost", significant(numbers.money), f"{price.currency}, at {price.core_hour:g} per core-hour"),
    ]


def _text_tiles(numbers: Numbers, text: Task) -> list[Tile]:
    tiles = []
    for stage in ("pretrain", "prefer"):
        r = text.results[stage]
        tiles.append(Tile(f"bits per byte after {TRAINED[stage]}", f"{r.mean:.3f}", f"{r.low:.3f} to {r.high:.3f}"))
    for baseline in numbers.baselines:
        remark = f"bits per byte; {count(baseline.tokens)} tokens"
        tiles.append(Tile(baseline.name, f"{baseline.result.mean:.3f}", remark))
    return tiles


def _task_tile(task: Task) -> Tile:
    r = task.final
    chance = "" if task.chance is None else f"; chance {task.chance:.3f}"
    return Tile(f"{task.name}: {r.metric.replace('_', ' ')}", f"{r.mean:.3f}", f"{r.low:.3f} to {r.high:.3f}{chance}")


def _preference_tile(prefer: Training) -> list[Tile]:
    accuracy = prefer.last("heldout_accuracy")
    if accuracy is None:
        return []
    is_dpo = prefer.settings["objective"] == "dpo"  # it compares with the model that it starts from: all pairs tie
    return [Tile("held-out preference accuracy", share(accuracy), "50 % before, by definition" if is_dpo else "")]


def _verdict(baseline: Baseline) -> str:
    c = baseline.against["pretrain"]
    place = side(c, baseline.result.higher_is_better)
    found = difference(c.difference, c.low, c.high)
    return f"{place} the {baseline.name} (difference {found} bits per byte)"


def _kept(text: Task) -> str:
    before, after = text.results["pretrain"].mean, text.results["prefer"].mean
    change = after / before - 1
    direction = "rose" if change > 0 else "fell"
    return f"Through fine-tuning and preference tuning its bits per byte {direction} by {share(abs(change))}."
