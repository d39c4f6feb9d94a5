"""Thoughts before an answer: `<think>...</think>`, which a model writes, or whose beginning its template writes.

Only what an answer begins with counts as thoughts; the marks, and the white space beside them, are in no part.
"""

from collections.abc import Callable

from lifecycle.text.parts import Part, joined, possible_start

# Pairs of marks that published models use: DeepSeek and Qwen, Mistral, Seed.
MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))

type Marks = tuple[str, str]


def marks_of(template: str) -> Marks | None:
    """The marks of thoughts that a chat template's source names; None: its model does not think aloud."""
    return next((marks for marks in MARKS if marks[0] in template or marks[1] in template), None)


class ThoughtSplitter:
    """Takes thoughts from the beginning of an answer; the rest is text."""

    def __init__(self, marks: Marks | None, is_open: bool = False) -> None:
        """`is_open`: the prompt has the first mark."""
        self._opening, self._closing = marks or ("", "")
        self._held = ""
        self._state: Callable[[], Part | None]
        self._state = self._text if marks is None else self._before_thoughts if is_open else self._beginning

    def feed(self, text: str) -> list[Part]:
        """The parts that the text completes."""
        self._held += text
        parts: list[Part] = []
        state = None
        while state != self._state:
            state = self._state
            if (part := state()) is not None:
                parts.append(part)
        return joined(parts)

    def flush(self) -> list[Part]:
        """The parts that were held back."""
        held, self._held = self._held, ""
        kind = "text" if self._state == self._beginning else "thought"
        is_dropped = self._state in (self._before_thoughts, self._before_text)
        return joined([] if is_dropped else [Part(kind, held if kind == "text" else held.rstrip())])

    def _beginning(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._opening):
            self._held = begun.removeprefix(self._opening)
            self._state = self._before_thoughts
        elif not self._opening.startswith(begun):
            self._state = self._text

    def _before_thoughts(self) -> None:
        self._held = self._held.lstrip()
        if self._held:
            self._state = self._thoughts

    def _thoughts(self) -> Part:
        thoughts, mark, rest = self._held.partition(self._closing)
        if mark:
            self._held, self._state = rest, self._before_text
            return Part("thought", thoughts.rstrip())
        sure = self._held[: len(self._held) - possible_start(self._held, self._closing)].rstrip()
        self._held = self._held[len(sure) :]
        return Part("thought", sure)

    def _before_text(self) -> None:
        self._held = self._held.lstrip()
        if self._held:
            self._state = self._text

    def _text(self) -> Part:
        text, self._held = self._held, ""
        return Part("text", text)
