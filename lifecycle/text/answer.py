"""An answer taken apart: first its thoughts, then the calls of tools in the rest."""

from collections.abc import Collection

from lifecycle.text.calls import CallForm, CallParser
from lifecycle.text.parts import Part, joined
from lifecycle.text.thoughts import Marks, ThoughtSplitter


class AnswerParser:
    """`feed` the text of an answer as it comes, then `flush`: its parts."""

    def __init__(
        self, marks: Marks | None, is_open: bool = False, form: CallForm | None = None, tools: Collection[str] = ()
    ) -> None:
        """`marks` of thoughts, which the prompt may have opened; `form`: of calls of `tools`, if there are any."""
        self._thoughts = ThoughtSplitter(marks, is_open)
        self._calls = None if form is None or not tools else CallParser(form, tools)

    def feed(self, text: str) -> list[Part]:
        """The parts that the text completes."""
        return self._pass_on(self._thoughts.feed(text))

    def flush(self) -> list[Part]:
        """The parts that were held back, at the end."""
        rest = self._pass_on(self._thoughts.flush())
        return rest if self._calls is None else joined([*rest, *self._calls.flush()])

    def _pass_on(self, parts: list[Part]) -> list[Part]:
        calls = self._calls
        if calls is None:
            return parts
        return joined(new for part in parts for new in (calls.feed(part.text) if part.kind == "text" else [part]))
