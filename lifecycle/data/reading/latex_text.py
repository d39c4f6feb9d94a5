"""The text of a LaTeX document while it is put together: paragraphs, items of lists, blocks that stay as they are."""

import re

_BLANKS = re.compile(r" {2,}| *\t *")


class LatexText:
    """Takes words and ends of paragraphs; gives lines, with an empty one between paragraphs."""

    def __init__(self) -> None:
        self._words: list[str] = []  # of the paragraph
        self._lines: list[str] = []
        self._items: list[int] = []  # how many each open list has
        self._mark: str | None = None  # of an item that begins; "" for one that has a label

    def add(self, words: str) -> None:
        """Adds to the paragraph; a line end in it is one of the text."""
        self._words.append(words)

    def end_paragraph(self) -> None:
        """Ends the paragraph, if there is one."""
        lines = (_BLANKS.sub(_one, line.strip(" ")) for line in "".join(self._words).split("\n"))
        self._words.clear()
        if paragraph := "\n".join(line for line in lines if line.strip()):
            self._put(paragraph)

    def block(self, text: str) -> None:
        """Lines that stay as they are, by themselves."""
        self.end_paragraph()
        self._put(text)

    def begin_list(self) -> None:
        """Begins a list, or one in the list."""
        self.end_paragraph()
        self._items.append(0)

    def end_list(self) -> None:
        """Ends the innermost list."""
        self.end_paragraph()
        self._mark = None
        if self._items:
            self._items.pop()

    def begin_item(self, is_numbered: bool, is_labelled: bool) -> None:
        """Begins an item; one with a label has no other mark."""
        self.end_paragraph()
        self._items = self._items or [0]
        self._items[-1] += 1
        self._mark = "" if is_labelled else f"{self._items[-1]}. " if is_numbered else "• "

    def all(self) -> str:
        """The whole text."""
        self.end_paragraph()
        return "\n".join(self._lines).strip("\n") + "\n"

    def _put(self, text: str) -> None:
        indent = "  " * max(0, len(self._items) - (self._mark is not None))
        if self._lines and (self._mark is None or self._items[-1] == 1):
            self._lines.append("")
        self._lines += [f"{indent}{line}" for line in f"{self._mark or ''}{text}".split("\n")]
        self._mark = None


def _one(blanks: re.Match[str]) -> str:
    return "\t" if "\t" in blanks[0] else " "
