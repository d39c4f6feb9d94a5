"""Answers in the harmony format of gpt-oss: messages in channels, of which some are thoughts and some calls of tools.

A message is a header, `<|channel|>analysis`, `<|message|>`, a content, and `<|end|>`, `<|call|>` or `<|return|>`; a
call's header also has `to=functions.NAME`. Source: OpenAI's guide to the format (openai-harmony 0.0.5,
`docs/format.md`).
"""

import re
from collections.abc import Collection

from lifecycle.text.parts import Part, joined, possible_start

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
TOKENS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
THOUGHTS = re.compile(r"<\|channel\|>\s*analysis\b")
CALL = re.compile(r"\bto=functions\.([a-zA-Z0-9_-]+)")


def is_harmony(template: str) -> bool:
    """Whether a chat template's source writes the format."""
    return CHANNEL in template and MESSAGE in template


class HarmonyParser:
    """Takes an answer's messages apart. Calls of other tools than `tools`, and what is in no message, are text."""

    def __init__(self, tools: Collection[str]) -> None:
        self._tools = tools
        self._held = ""
        self._is_header = True
        self._kind: Part = Part("text", "")  # of what the content adds
        self._count = 0

    def feed(self, text: str) -> list[Part]:
        """The parts that the text completes."""
        self._held += text
        parts: list[Part] = []
        while self._header(parts) if self._is_header else self._content(parts):
            pass
        return joined(parts)

    def flush(self) -> list[Part]:
        """What was held back; a header that has not ended says nothing."""
        is_framing = self._is_header and self._held.lstrip().startswith((START, CHANNEL))
        text, self._held = "" if is_framing else self._held, ""
        return joined([self._part(text)] if text else [])

    def _header(self, parts: list[Part]) -> bool:
        header, mark, rest = self._held.partition(MESSAGE)
        if not mark:
            return False
        self._held, self._is_header = rest, False
        called = CALL.search(header)
        if called is None:
            self._kind = Part("thought" if THOUGHTS.search(header) else "text", "")
        elif called[1] in self._tools:
            parts.append(Part("call", "", self._count, called[1]))
            self._kind = Part("call", "", self._count)
            self._count += 1
        else:
            self._kind = Part("text", "")
            parts.append(self._part(header + mark))
        return True

    def _content(self, parts: list[Part]) -> bool:
        found = [(place, mark) for mark in ENDS if (place := self._held.find(mark)) >= 0]
        if found:
            place, mark = min(found)
            parts.append(self._part(self._held[:place]))
            self._held, self._is_header, self._kind = self._held[place + len(mark) :], True, Part("text", "")
            return True
        sure = len(self._held) - max(possible_start(self._held, mark) for mark in ENDS)
        parts.append(self._part(self._held[:sure]))
        self._held = self._held[sure:]
        return False

    def _part(self, text: str) -> Part:
        return Part(self._kind.kind, text, self._kind.call)
