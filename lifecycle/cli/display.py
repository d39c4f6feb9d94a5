"""Progress for people: a live line on a terminal, a plain line every few seconds elsewhere."""

import json
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

PLAIN_EVERY_S = 10.0
SHOWN = {
    "loss": "loss {:.3f}",
    "rewards/accuracies": "accuracy {:.2f}",
    "learning_rate": "lr {:.1e}",
    "tokens_per_s": "{:,.0f} tokens/s",
}


def describe(metrics: dict[str, Any]) -> str:
    """The displayed metrics, in one line."""
    return "  ".join(text.format(metrics[name]) for name, text in SHOWN.items() if name in metrics)


class Live:
    """A bar per stage, finished ones above the running one: stage, step, loss, tokens/s, time left."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<22}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task: Any = None

    def __enter__(self) -> "Live":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._bars.stop()

    def start(self, stage: str, total: int | None = None) -> None:
        """Begins a stage's bar and completes the one before it."""
        self._finish()
        self._task = self._bars.add_task(stage, total=total, text="")

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """Moves the current bar and shows the metrics after it."""
        if total is not None:
            self._bars.update(self._task, total=total)
        self._bars.update(self._task, completed=done, text=describe(metrics))

    def note(self, text: str) -> None:
        """Prints a line above the bars, where it stays visible: it may be a warning."""
        self._bars.console.print(text, style="dim", markup=False, highlight=False)

    def _finish(self) -> None:
        if self._task is not None:
            task = self._bars.tasks[self._task]
            self._bars.update(self._task, total=task.completed or 1, completed=task.completed or 1)


class Plain:
    """Lines for logs: when a stage starts, its notes, and its progress every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console, self._stage, self._total = console, "", None
        self._started = self._last = 0.0

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: object) -> None:
        self._console.file.flush()

    def start(self, stage: str, total: int | None = None) -> None:
        """Begins a stage and prints a line for it."""
        self._stage, self._total = stage, total
        self._started = self._last = time.monotonic()
        self._print("")

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """Prints a line, at most once every `PLAIN_EVERY_S` seconds."""
        self._total = total or self._total
        if time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            self._print(f"{done}/{self._total or '?'}  {describe(metrics)}  {self._left(done)}".rstrip())

    def note(self, text: str) -> None:
        """Prints a line."""
        self._print(text)

    def _left(self, done: int) -> str:
        """Time left, at the mean speed since the start."""
        if not done or self._total is None:
            return ""
        seconds = round((time.monotonic() - self._started) * (self._total - done) / done)
        return f"{seconds // 60}:{seconds % 60:02} left"

    def _print(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')}  {self._stage:<22} {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints a value as JSON, for programs."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def progress_on(console: Console) -> Live | Plain:
    """A live display for a terminal, plain lines elsewhere."""
    return Live(console) if console.is_terminal else Plain(console)
