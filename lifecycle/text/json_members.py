"""Reads the members of a JSON object while its text comes: which are there, and what their values are, as written."""

from collections.abc import Callable

SPACE = " \t\r\n"


class Members:
    """`feed` text from the object's opening brace on, until it `is_done`. A value's own text is not checked beyond its
    brackets."""

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False  # what came is not the beginning of an object
        self.key: str | None = None  # of the member whose value comes now
        self.values: dict[str, str] = {}  # by key, as far as they have come
        self.whole: set[str] = set()  # keys of the values that have ended
        self._state: Callable[[str], None] = self._open
        self._text = ""
        self._depth = 0
        self._is_text = self._is_escaped = False

    def feed(self, text: str) -> int:
        """Reads up to where a value begins or ends, or the object ends or breaks; the number of characters read."""
        for number, character in enumerate(text, 1):
            known = len(self.values) + len(self.whole)
            self._state(character)
            if self.is_done or self.is_broken or len(self.values) + len(self.whole) > known:
                return number
        return len(text)

    def _open(self, character: str) -> None:
        if character not in SPACE:
            self.is_broken = character != "{"
            self._state = self._before_key

    def _before_key(self, character: str) -> None:
        if character == '"':
            self._text, self._state = "", self._in_key
        elif character == "}" and not self.values:
            self.is_done = True
        elif character not in SPACE:
            self.is_broken = True

    def _in_key(self, character: str) -> None:
        if character == '"':
            self.key, self._state = self._text, self._after_key
            self.is_broken = self.key in self.values
        elif character == "\\":
            self.is_broken = True  # no key that means something is written so
        self._text += character

    def _after_key(self, character: str) -> None:
        if character == ":":
            self._state = self._before_value
        elif character not in SPACE:
            self.is_broken = True

    def _before_value(self, character: str) -> None:
        assert self.key is not None
        if character in ",}]:":
            self.is_broken = True
        elif character not in SPACE:
            self.values[self.key], self._depth = "", 0
            self._state = self._in_value if character in '"{[' else self._in_word
            self._state(character)

    def _in_word(self, character: str) -> None:
        """In a number, `true`, `false` or `null`."""
        assert self.key is not None
        if character in SPACE or character in ",}":
            self._end_value()
            self._after_value(character)
        else:
            self.values[self.key] += character

    def _in_value(self, character: str) -> None:
        assert self.key is not None
        self.values[self.key] += character
        if self._is_escaped:
            self._is_escaped = False
        elif self._is_text:
            self._is_escaped = character == "\\"
            self._is_text = character != '"'
        elif character == '"':
            self._is_text = True
        else:
            self._depth += (character in "{[") - (character in "}]")
        if self._depth == 0 and not self._is_text:
            self._end_value()

    def _end_value(self) -> None:
        assert self.key is not None
        self.whole.add(self.key)
        self._state = self._after_value

    def _after_value(self, character: str) -> None:
        if character == ",":
            self._state = self._before_key
        elif character == "}":
            self.is_done = True
        elif character not in SPACE:
            self.is_broken = True
