"""Progress for people: a live line on a terminal, a plain line every few seconds elsewhere."""

import json
import re
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from lifecycle.core.progress import TimeLeft

PLAIN_EVERY_S = 10.0
SHOWN = {
    "loss": "loss {:.3f}",
    "rewards/accuracies": "accuracy {:.2f}",
    "learning_rate": "lr {:.1e}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "documents": "{:,} documents",
}
# Control characters but tab and line feed, separators of lines, marks that turn the direction of writing or cannot be
# seen, halves of pairs: a terminal obeys some of them, and the others hide what a text says.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def describe(metrics: dict[str, Any]) -> str:
    """The displayed metrics, in one line."""
    return "  ".join(text.format(metrics[name]) for name, text in SHOWN.items() if name in metrics)


def visible(text: str) -> str:
    """A text of others, safe on a terminal: characters that it would obey, or that nobody sees, as \\x1b or \\u202e."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def in_line(text: str) -> str:
    """`visible`, with line feeds and tabs as \\n and \\t."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


class _Left(ProgressColumn):
    """The time left of a bar that is not full."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The estimate of now."""
        left = None if task.finished else task.fields["left"].seconds(task.total, time.monotonic())
        return Text("" if left is None else _clock(left), style="progress.remaining")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"


class Live:
    """A bar per stage, finished ones above the running one: stage, step, loss, tokens/s, time left."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<22}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            _Left(),
            console=console,
        )
        self._task: Any = None
        self._left = TimeLeft(0.0)

    def __enter__(self) -> "Live":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._bars.stop()

    def start(self, stage: str, total: int | None = None) -> None:
        """Begins a stage's bar and completes the one before it."""
        self._finish()
        self._left = TimeLeft(time.monotonic())
        self._task = self._bars.add_task(stage, total=total, text="", left=self._left)

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """Moves the current bar and shows the metrics after it."""
        self._left.update(done, time.monotonic())
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
        self._console, self._stage = console, ""
        self._total: int | None = None
        self._last, self._left = 0.0, TimeLeft(0.0)

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: object) -> None:
        self._console.file.flush()

    def start(self, stage: str, total: int | None = None) -> None:
        """Begins a stage and prints a line for it."""
        self._stage, self._total = stage, total
        self._last = time.monotonic()
        self._left = TimeLeft(self._last)
        self._print("")

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        """Prints a line, at most once every `PLAIN_EVERY_S` seconds."""
        self._total = total or self._total
        now = time.monotonic()
        self._left.update(done, now)
        if now - self._last >= PLAIN_EVERY_S:
            self._last, left = now, self._left.seconds(self._total, now)
            shown = (f"{done}/{self._total or '?'}", describe(metrics), "" if left is None else _clock(left))
            self._print("  ".join(filter(None, shown)))

    def note(self, text: str) -> None:
        """Prints a line."""
        self._print(text)

    def _print(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')}  {self._stage:<22} {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints a value as JSON, for programs."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def progress_on(console: Console) -> Live | Plain:
    """A live display for a terminal, plain lines elsewhere."""
    return Live(console) if console.is_terminal else Plain(console)
