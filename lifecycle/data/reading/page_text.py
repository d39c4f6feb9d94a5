"""The text of a page while it is put together: paragraphs on one line each, what belongs to a tag indented."""

STEP = 4  # blanks of an indentation
SHORT_TAG = 3  # characters of a tag that is on the line of its text, as a bullet or number


class PageText:
    """Takes words and breaks; gives lines. Where lines are filled, a paragraph is one line, as in other sources."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._words: list[str] = []
        self._tag = ""
        self._is_joined = self._is_apart = False  # to the words before; from the lines before
        self.indent = 0  # of what follows
        self.is_filled = True

    def add(self, text: str, is_joined: bool = False) -> None:
        """Adds an input line: words of the paragraph, or where lines stay a line. The next one is joined to it without
        a blank if `is_joined`."""
        if not self.is_filled:
            self._words.append(text)
            if not is_joined:
                self.end_line(is_empty_kept=True)
            return
        if text.startswith((" ", "\t")) and not self._is_joined:
            self.end_line()
        if words := text.lstrip(" ") if is_joined else text.strip(" "):
            self._words.append(words if self._is_joined or not self._words else f" {words}")
        self._is_joined = is_joined

    def join(self) -> None:
        """Lets no blank be between the words before and those that follow."""
        self._is_joined = bool(self._words)

    def end_line(self, is_empty_kept: bool = False) -> None:
        """Ends the line, if there is one."""
        words, self._words, self._is_joined = "".join(self._words).rstrip(), [], False
        if not words and not is_empty_kept:
            return
        if self._is_apart and self._lines:
            self._lines.append("")
        self._is_apart = False
        indent = " " * (STEP * max(0, self.indent - bool(self._tag)))
        self._lines.append(f"{indent}{self._tag}{words}".rstrip())
        self._tag = ""

    def end_paragraph(self) -> None:
        """Ends the line, and lets an empty one follow it."""
        self.end_line()
        self._is_apart = True

    def heading(self, text: str) -> None:
        """A heading: a line by itself."""
        self.end_paragraph()
        self.indent, self.is_filled = 0, True
        self.add(text)
        self.end_paragraph()

    def tag(self, text: str) -> None:
        """What the text that follows is said of: a line by itself, or the beginning of the text's if it is short."""
        self.end_line()
        text = text.strip()
        if text and len(text) <= SHORT_TAG:
            self._tag = f"{text} "
        elif text:
            self.indent -= 1
            self.add(text)
            self.end_line(is_empty_kept=False)
            self.indent += 1

    @property
    def is_begun(self) -> bool:
        """Whether there is any text."""
        return bool(self._lines or self._words)

    def all(self) -> str:
        """The whole text."""
        self.end_line()
        return "\n".join(self._lines).strip("\n") + "\n"
