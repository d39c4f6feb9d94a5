"""Five kinds of duplicates of a text, as people meet them; each is a file's name and content."""

import html
import random
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

_WORD = re.compile(r"\w+")
_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Host:
    """A real document: its file's suffix and bytes, and the text that is read from it."""

    suffix: str
    data: bytes
    text: str


@dataclass(frozen=True)
class Copy:
    """What is planted: a file's suffix and content, and what was done to the host."""

    suffix: str
    data: bytes
    form: str


def exact(host: Host, other: str, chance: random.Random) -> Copy:
    """The same file again."""
    del other, chance
    return Copy(host.suffix, host.data, "file")


def markup(host: Host, other: str, chance: random.Random) -> Copy:
    """The text as another program writes it: HTML, a manual, lines of another width, of other blanks and cases."""
    del other
    paragraphs = _PARAGRAPHS.split(host.text.strip())
    forms: dict[str, Callable[[], tuple[str, str]]] = {
        "html": lambda: (".html", _page(paragraphs)),
        "man": lambda: (".1", _manual(paragraphs)),
        "wrapped": lambda: (".txt", "\n\n".join(textwrap.fill(own, chance.randint(40, 100)) for own in paragraphs)),
        "blanks": lambda: (".txt", re.sub(r"[ \n]", lambda _: chance.choice((" ", "  ", "\n", "\t")), host.text)),
        "upper": lambda: (".txt", host.text.upper()),
    }
    form = chance.choice(sorted(forms))
    suffix, text = forms[form]()
    return Copy(suffix, text.encode(), form)


def edited(host: Host, other: str, chance: random.Random) -> Copy:
    """Some words are others, or gone; one in 20 to one in 1,000."""
    share = 10 ** -chance.uniform(1.3, 3)
    others = _WORD.findall(other)

    def change(word: re.Match[str]) -> str:
        if chance.random() >= share:
            return word[0]
        return chance.choice(others) if chance.random() < 0.7 else ""

    return Copy(".txt", _WORD.sub(change, host.text).encode(), "words")


def framed(host: Host, other: str, chance: random.Random) -> Copy:
    """A paragraph is added or removed, at the head or at the tail."""
    paragraphs = _PARAGRAPHS.split(host.text.strip())
    at_head, added = chance.random() < 0.5, chance.random() < 0.5 or len(paragraphs) < 3
    if added:
        frame = max(_PARAGRAPHS.split(other.strip())[:8], key=len)[:1500]
        paragraphs.insert(0 if at_head else len(paragraphs), frame)
    else:
        paragraphs.pop(0 if at_head else -1)
    form = f"{'added' if added else 'removed'}_{'head' if at_head else 'tail'}"
    return Copy(".txt", "\n\n".join(paragraphs).encode(), form)


def excerpt(host: Host, other: str, chance: random.Random) -> Copy:
    """The text cut off, with 50 to 98 % of its words; or whole, quoted in a text of 2 to 50 % of its words."""
    words = list(_WORD.finditer(host.text))
    if chance.random() < 0.5:
        end = words[int(len(words) * chance.uniform(0.5, 0.98)) - 1].end()
        return Copy(".txt", host.text[:end].encode(), "cut")
    around = list(_WORD.finditer(other))
    wanted = min(int(len(words) * chance.uniform(0.02, 0.5)), len(around) - 1)
    new = other[: around[wanted].start()]
    middle = len(new) // 2
    quoted = "\n".join("> " + line for line in host.text.split("\n"))
    return Copy(".txt", f"{new[:middle]}\n\n{quoted}\n\n{new[middle:]}".encode(), "quoted")


KINDS: dict[str, Callable[[Host, str, random.Random], Copy]] = {
    "exact": exact, "markup": markup, "edited": edited, "framed": framed, "excerpt": excerpt,
}  # fmt: skip


def true_jaccard(one: str, other: str) -> float:
    """Of the sets of runs of five words, without hashes."""
    first, second = (_runs(text) for text in (one, other))
    return len(first & second) / max(len(first | second), 1)


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return set(zip(*(words[at:] for at in range(5)), strict=False))


def _page(paragraphs: list[str]) -> str:
    body = "\n".join(f"<p class='x'>{html.escape(own)}</p>" for own in paragraphs)
    return (
        f"<!DOCTYPE html>\n<html><head><title></title><style>p {{margin: 0}}</style></head><body>{body}</body></html>"
    )


def _manual(paragraphs: list[str]) -> str:
    lines = [".TH COPY 7"]
    for own in paragraphs:
        lines += [".PP", *("\\&" + line.strip().replace("\\", "\\e") for line in own.split("\n"))]
    return "\n".join(lines) + "\n"
