"""`lifecycle watch`: a run's training stages as they go on, in a terminal, also over ssh and from another machine."""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lifecycle.cli.arguments import Overrides, logs_folder
from lifecycle.cli.terminal import terminal
from lifecycle.core.store import StoreError
from lifecycle.core.timesheet import CAUSES, DOWN, LOST, STEPS
from lifecycle.evals.results import CHANCE, STDERR
from lifecycle.report.curves import own_metrics
from lifecycle.report.format import count, counts, duration, money, share, significant
from lifecycle.report.watched import WatchedStage, memory_text, watched_stages
from lifecycle.training.metric_names import TASK_METRIC

EVERY_S = 2.0
LOOK_S = 30.0  # for newer logs in a store, where they come with each checkpoint
BARS = "▁▂▃▄▅▆▇█"
CURVE_CELLS = 48
SMALL = 0.005  # causes with a smaller share of the wall time are not listed
BITS = "heldout_bits_per_byte"

type RunPlace = Annotated[str, Parameter(help="A run's folder (runs/quickstart), its address, or its YAML file.")]
type Once = Annotated[bool, Parameter(help="Print one picture and end.")]


def watch(run: RunPlace, /, *overrides: Overrides, once: Once = False) -> None:
    """Shows the run's training stages until Ctrl-C; only reads, so it may start before, during or after the run."""
    folder, console = logs_folder(run, overrides), terminal()
    looked = time.time()
    if once:
        console.print(picture(folder, watched_stages(folder), time.time()))
        return
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(picture(folder, watched_stages(folder), time.time()), refresh=True)
                time.sleep(EVERY_S)
                if time.time() - looked > LOOK_S:
                    folder, looked = _looked_again(folder, run, overrides), time.time()
    except KeyboardInterrupt:
        return


def _looked_again(folder: Path, run: str, overrides: tuple[str, ...]) -> Path:
    """The folder of the run's logs, brought up to date if they are copies; as it was while the store is away."""
    try:
        return logs_folder(run, overrides)
    except StoreError:  # the picture says how old the last record is
        return folder


def picture(folder: Path, stages: list[WatchedStage], now: float) -> Group:
    """One picture: the stages in the order in which they began, the newest one with its curve."""
    if not stages:
        return Group(Text(f"{folder}: no training stage has begun"))
    parts = [part for stage in stages for part in _stage(stage, now, is_newest=stage is stages[-1])]
    return Group(Text(str(folder), style="bold"), *parts)


def _stage(stage: WatchedStage, now: float, is_newest: bool) -> Iterator[Rule | Table | Text]:
    yield Rule(f"{stage.name}  {stage.facts.get('objective', '')}", align="left", style="dim")
    if stage.damage is not None:
        yield Text(stage.damage, style="red")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(stage, now):
        table.add_row(name, value)
    if is_newest and (curve := [value for _, value in stage.curve("loss")]):
        table.add_row("loss so far", sparkline(curve))
    yield table


def _rows(stage: WatchedStage, now: float) -> Iterator[tuple[str, str]]:
    """Names and values of what is known."""
    if stage.sessions:
        yield "step", _progress(stage, now)
    if (loss := stage.newest("loss")) is not None:
        heldout = stage.newest("heldout_loss")
        yield "loss", significant(loss) + ("" if heldout is None else f", held out {significant(heldout)}")
    if (reward := stage.newest("reward")) is not None:
        heldout = stage.newest("heldout_reward")
        yield "reward", significant(reward) + ("" if heldout is None else f", held out {significant(heldout)}")
    if (bits := stage.newest(BITS)) is not None:
        yield "held out", f"{bits:.3f} bits per byte{_domains(stage)}"
    yield from _tasks(stage)
    norms = {"gradient": stage.newest("grad_norm"), "update": stage.newest("update_norm")}
    if known := [f"{name} {significant(norm, 3)}" for name, norm in norms.items() if norm is not None]:
        yield "norms", ", ".join(known)
    if (rate := stage.newest("learning_rate")) is not None:
        yield "learning rate", f"{rate:.2e}"
    if stage.tokens_per_s is not None:
        yield "speed", _speed(stage)
    if stage.sessions and (times := stage.step_times):
        yield "step time", ", ".join(f"{name} {seconds:.3g} s" for name, seconds in times.items())
    if stage.memory:
        yield "memory", memory_text(stage.memory)
    if stage.sessions:
        yield "goodput", goodput_text(stage)
        if stage.faults:
            yield "faulty steps", counts(Counter(fault["action"] for fault in stage.faults))
        yield "failures", ", ".join(stage.account.failures) or "none"
    yield from (("warning", str(remark)) for remark in stage.remarks)
    if stage.sessions and stage.cost is not None:
        yield "cost", money(stage.cost, stage.facts["currency"])


def _progress(stage: WatchedStage, now: float) -> str:
    facts, text = stage.facts, count(stage.step)
    if "steps" in facts:
        text += f" of {count(facts['steps'])} ({share(stage.step / facts['steps'])})"
    if stage.ended is not None:
        return f"{text}, {stage.ended}"
    left = ""
    if stage.tokens_per_s and "steps" in facts:
        seconds = (facts["steps"] - stage.step) * facts["tokens_per_step"] / stage.tokens_per_s
        left = f"{duration(seconds)} of steps left; "
    return f"{text}, {left}last record {duration(max(0.0, now - stage.seen_at))} ago"


def _domains(stage: WatchedStage) -> str:
    parts = [name for name in stage.names if name.startswith(f"{BITS}.")]
    shown = ", ".join(f"{name.removeprefix(f'{BITS}.')} {stage.newest(name):.3f}" for name in parts)
    return f" ({shown})" if shown else ""


def _tasks(stage: WatchedStage) -> Iterator[tuple[str, str]]:
    """Each task that is measured during training: its own metric with its standard error, and chance."""
    for task, metric in own_metrics(stage.names).items():
        value, error = stage.newest(metric), stage.newest(f"{metric}{STDERR}")
        name, chance = metric.partition(TASK_METRIC)[2], stage.newest(f"{task}{TASK_METRIC}{CHANCE}")
        compared = "" if chance is None else f" (chance {chance:.3f})"
        rows = stage.facts.get("measured_tasks", {}).get(task)
        yield task, f"{name.replace('_', ' ')} {value:.3f} ± {error:.3f}{compared}" + (f", {rows}" if rows else "")


def _speed(stage: WatchedStage) -> str:
    text = f"{count(stage.tokens_per_s or 0)} tokens/s"
    if stage.mfu is None:
        return text
    facts = stage.facts
    peak = f"{facts['peak_chip']}'s published peak" if "peak_chip" in facts else "measured matmul rate"
    return f"{text}, MFU {share(stage.mfu)} of the {peak}"


def goodput_text(stage: WatchedStage) -> str:
    """The share of productive steps, then the other causes of at least `SMALL`."""
    sheet = stage.account
    wall = sheet.wall_s
    known = sorted(sheet.seconds, key=lambda cause: (*CAUSES, LOST, DOWN, STEPS).index(cause))
    shares = {cause: sheet.seconds[cause] / wall for cause in known if cause != STEPS}
    others = [f"{cause} {share(part)}" for cause, part in shares.items() if part > SMALL]
    lost = f" ({count(sheet.lost_steps)} steps ran again)" if sheet.lost_steps else ""
    return f"{share(sheet.goodput)} of {duration(wall)} in steps; " + ", ".join(others) + lost


def sparkline(values: list[float]) -> str:
    """A curve in one line: means of equal parts, from the lowest to the highest."""
    cells = min(CURVE_CELLS, len(values))
    bounds = [round(i * len(values) / cells) for i in range(cells + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)
