"""Rules for single lines of prose: those of C4 and of RefinedWeb, which remove a line or cut something out of it.

Where they are from is said at their settings (`quality_config.py`). Each rule has a name, under which the lines are
counted that it changes. C4's agree with its program line by line: the words of a line are counted with its citations,
and what is left of it must end with an end mark as it is. Of RefinedWeb's, a pattern with full stops means these, where
DCLM's regular expression takes them for any character.
"""

import re
from collections.abc import Callable, Iterable

from lifecycle.data.measures.quality_config import C4LinesConfig, RefinedWebLinesConfig

# A line that is not blank -> what is left of it, None if it goes, and the name of the rule that changed it, "" if none
# did.
type LineRule = Callable[[str], tuple[str | None, str]]

C4_RULES = ("c4_long_word", "c4_no_end_mark", "c4_few_words", "c4_phrase", "c4_citation")
REFINEDWEB_RULES = (
    "refinedweb_uppercase", "refinedweb_digits", "refinedweb_counter", "refinedweb_few_words", "refinedweb_pattern",
)  # fmt: skip
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_ELLIPSIS = "..."
_UPPERCASE, _DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"0123456789"


def c4_rule(of: C4LinesConfig) -> LineRule:
    """C4's rules, in the order of its program."""
    without = _any_of(of.without, "{}")

    def rule(line: str) -> tuple[str | None, str]:
        words = line.split()
        if of.max_word_length is not None and max(map(len, words), default=0) > of.max_word_length:
            return None, "c4_long_word"
        left = _CITATION.sub("", line) if of.citations else line
        if of.end_marks and (not left.endswith(of.end_marks) or left.endswith(_ELLIPSIS)):
            return None, "c4_no_end_mark"
        if len(words) < (of.min_words or 0):
            return None, "c4_few_words"
        if without and without.search(left):
            return None, "c4_phrase"
        return (left if left.strip() else None), "c4_citation" if left != line else ""

    return rule


def refinedweb_rule(of: RefinedWebLinesConfig) -> LineRule:
    """RefinedWeb's rules, in the order of DCLM's program."""
    counter = _any_of(of.counted, r"^\W*\d[\d,.]*[kmb]?\s+(?:{})\W*$")
    cuts = (_any_of(of.anywhere, r"\s?(?:{})"), _any_of(of.at_end, r"\s?(?:{})$"), _any_of(of.at_begin, r"^(?:{})\s?"))
    patterns = [cut for cut in cuts if cut is not None]

    def rule(line: str) -> tuple[str | None, str]:
        if of.max_uppercase is not None and _count(line, _UPPERCASE, str.isupper) > of.max_uppercase * len(line):
            return None, "refinedweb_uppercase"
        if of.max_digits is not None and _count(line, _DIGITS, str.isdigit) > of.max_digits * len(line):
            return None, "refinedweb_digits"
        if counter and counter.search(line):
            return None, "refinedweb_counter"
        num_words = len(line.split())
        if num_words < (of.min_words or 0):
            return None, "refinedweb_few_words"
        left = line
        for pattern in patterns if num_words <= of.max_pattern_words else ():
            left = pattern.sub("", left)
        return (left if left.strip() else None), "refinedweb_pattern" if left != line else ""

    return rule


def _any_of(phrases: Iterable[str], pattern: str) -> re.Pattern[str] | None:
    """The pattern with any of the phrases, in any case, at its `{}`; None without phrases."""
    either = "|".join(map(re.escape, phrases))
    return re.compile(pattern.replace("{}", either), re.IGNORECASE) if either else None


def _count(line: str, of_ascii: bytes, has_class: Callable[[str], bool]) -> int:
    """How many characters have a class; `of_ascii` are those of ASCII that have it."""
    if line.isascii():
        return len(line) - len(line.encode().translate(None, of_ascii))
    return sum(map(has_class, line))
