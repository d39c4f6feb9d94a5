"""The characters that mark a page: control characters, which no text has behind normalisation; ASCII stays ASCII."""

LINK, LINK_END, HEADING, CELL, ROW, TABLE_END, CODE, CODE_END = map(chr, range(1, 9))
ARTICLE, ARTICLE_END, GONE = "\x0e", "\x0f", "\x10"  # the last: where a line was
ALL = (LINK, LINK_END, HEADING, CELL, ROW, TABLE_END, CODE, CODE_END, ARTICLE, ARTICLE_END, GONE)


def unmarked(text: str, kept: str = "") -> str:
    """The text without marks, but those that are kept."""
    for mark in ALL:
        if mark in text and mark not in kept:
            text = text.replace(mark, "")
    return text
