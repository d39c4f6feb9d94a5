"""Evaluation rows in disguise: the text of a row as it turns up in a document."""

import html
import json
import random
import re
import string
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lifecycle.data.selecting.eval_items import texts_in
from lifecycle.data.selecting.overlap_index import MIN_ITEM_WORDS

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Row:
    """A question and what belongs to it, as one text each; where it is from."""

    name: str
    question: str
    answer: str

    @property
    def is_comparable(self) -> bool:
        """Whether a text of the row has enough words to be looked for at all."""
        return any(len(_WORD.findall(text)) >= MIN_ITEM_WORDS for text in (self.question, self.answer))


def rows_of(files: list[Path]) -> list[Row]:
    """All rows; of choices the right one is the answer."""
    rows = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            row = {key: value[row["gold"]] if isinstance(value, list) else value for key, value in row.items()}
            order = sorted(row, key=lambda key: ("question", "query", "context", "context_options").count(key) == 0)
            question, *answers = texts_in([row[key] for key in order])
            rows.append(Row(f"{path.name}:{number}", question, "\n".join(answers)))
    return rows


def _case(row: Row, chance: random.Random) -> str:
    change = chance.choice((str.upper, str.lower, str.swapcase, string.capwords))
    return f"{change(row.question)}\n{change(row.answer)}"


def _punctuation(row: Row, chance: random.Random) -> str:
    text = f"{row.question} {row.answer}"
    form = chance.choice(("gone", "blank", "typographic", "dashes"))
    if form == "typographic":
        text = re.sub(r'"([^"]*)"', "\u201c\\1\u201d", text).replace("'", "\u2019").replace("...", "\u2026")
        return text.replace(" - ", " \u2014 ")
    if form == "dashes":
        return re.sub(r"[,;:]", " --", text).replace(".", " . ").replace("?", " ??")
    return text.translate({ord(mark): " " if form == "blank" else None for mark in string.punctuation if mark != "_"})


def _line_breaks(row: Row, chance: random.Random) -> str:
    lines = textwrap.wrap(f"{row.question} {row.answer}", chance.randint(20, 60))
    return "\n".join(chance.choice((">", "   ", "*", "#")) + " " + line for line in lines)


def _markup(row: Row, chance: random.Random) -> str:
    def dressed(word: re.Match[str]) -> str:
        drawn = chance.random()
        if drawn < 0.1:
            return f"<b>{word[0]}</b>"
        if drawn < 0.15:
            return f"<a href='x.html'>{word[0]}</a>"
        return f"{word[0]}<br/>" if drawn < 0.2 else word[0]

    question, answer = (
        re.sub(r"(?<![&\w])[^\W\d_]{2,}\b", dressed, html.escape(text, quote=False))
        for text in (row.question, row.answer)
    )
    form = chance.choice(("<h3>{}</h3><p>{}</p>", "<blockquote><p>{}</p><p>{}</p></blockquote>", "<p>{}<br>{}</p>"))
    return f"<div>{form.format(question, answer)}</div>"


def _reordered(row: Row, chance: random.Random) -> str:
    letter = chance.choice("ABCD")
    return f"Solution ({letter}): {row.answer}\n\nThe problem was:\n{row.question}"


DISGUISES: dict[str, Callable[[Row, random.Random], str]] = {
    "case": _case, "punctuation": _punctuation, "line_breaks": _line_breaks, "markup": _markup, "reordered": _reordered,
}  # fmt: skip


def hidden(row: Row, disguise: str, host: str, chance: random.Random) -> tuple[str, bytes]:
    """A file's suffix and content: the row in the middle of a text."""
    paragraphs = re.split(r"\n\s*\n", host.strip())
    if disguise == "markup":
        paragraphs = [f"<p>{html.escape(own)}</p>" for own in paragraphs]
    paragraphs.insert(len(paragraphs) // 2, DISGUISES[disguise](row, chance))
    text = "\n\n".join(paragraphs)
    return (".html", f"<html><body>{text}</body></html>".encode()) if disguise == "markup" else (".txt", text.encode())
