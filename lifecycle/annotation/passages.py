"""Texts in passages that a model can be asked about: cut at the borders of paragraphs.

What must hold: the passages have all that is not white space, in order, and none is longer than asked.
"""

import re
from collections.abc import Iterator

_BORDER = re.compile(r"\n[^\S\n]*\n\s*")
# Where a paragraph that is too long may be cut, the best first: behind a line, a sentence, a word.
_ENDS = (
    re.compile(r"\n"),
    re.compile("[.!?\u3002\uff01\uff1f\u0964][\"')\\]]*\\s|[\u3002\uff01\uff1f]"),
    re.compile(r"\s"),
)


def passages(text: str, most: int) -> list[str]:
    """Cuts a text into passages of at most `most` characters, of whole paragraphs where these are not longer."""
    found: list[str] = []
    for paragraph in (part.strip() for part in _BORDER.split(text)):
        for piece in _pieces(paragraph, most) if paragraph else ():
            joined = f"{found[-1]}\n\n{piece}" if found else piece
            if found and len(joined) <= most:
                found[-1] = joined
            else:
                found.append(piece)
    return found


def _pieces(paragraph: str, most: int) -> Iterator[str]:
    """A paragraph, in pieces if it is too long. A cut takes at least half of what is allowed, if it can."""
    while len(paragraph) > most:
        begin = paragraph[: most + 1]
        ends = ([found.end() for found in end.finditer(begin, most // 2) if found.end() <= most] for end in _ENDS)
        at = next((own[-1] for own in ends if own), most)
        yield paragraph[:at].strip()
        paragraph = paragraph[at:].strip()
    if paragraph:
        yield paragraph
