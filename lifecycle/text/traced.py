"""Text that knows which of its characters are a message's, whatever a chat template does with it.

A template receives contents as `Traced` strings. They compare, measure and search as the plain text; what is cut from
them or joined with them stays traced. What must hold: no character of a message becomes the template's. So every
operation that is not traced is refused, also `str()`, by which other code would make plain text of it. A text of one
origin may be changed by any method: all that comes out is of that origin.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn, SupportsIndex


class TextOrigin(NamedTuple):
    """Where text is from: the index of a message, or None for the template's own text; and the number of the
    `{% generation %}` block that it was written in, if any."""

    message: int | None
    block: int | None = None


OWN = TextOrigin(None)
type Run = tuple[str, TextOrigin]


class Traced(str):
    """Text in runs, each from one message or from the template."""

    __slots__ = ("_runs",)
    _runs: tuple[Run, ...]

    def __new__(cls, runs: Iterable[Run]) -> "Traced":
        """The text of `runs`; neighbours of one origin become one run, so that a name which a template writes in parts
        is whole."""
        kept = [run for run in runs if run[0]]
        assert not any(isinstance(text, Traced) for text, _ in kept), "a content would become the template's"
        if len(kept) > 1:
            kept = [("".join(text for text, _ in group), i) for i, group in groupby(kept, key=itemgetter(1))]
        self = super().__new__(cls, "".join(text for text, _ in kept))
        self._runs = tuple(kept)
        return self

    def __add__(self, other: str, /) -> "Traced":
        return concatenated([self, other])

    def __radd__(self, other: str, /) -> "Traced":
        return concatenated([other, self])

    def __iter__(self) -> Iterator[str]:
        return (self._part(i, i + 1) for i in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice, /) -> "Traced":
        if not isinstance(key, slice):
            first = range(len(self))[key]
            return self._part(first, first + 1)
        start, stop, step = key.indices(len(self))
        if step != 1:
            refuse()
        return self._part(start, stop)

    def strip(self, chars: str | None = None, /) -> "Traced":
        """As of plain text."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> "Traced":
        """As of plain text."""
        return self._part(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> "Traced":
        """As of plain text."""
        return self._part(0, len(super().rstrip(chars)))

    def removeprefix(self, prefix: str, /) -> "Traced":
        """As of plain text."""
        return self._part(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> "Traced":
        """As of plain text."""
        return self._part(0, len(super().removesuffix(suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As of plain text; each part is traced."""
        return self._located(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As of plain text; each part is traced."""
        return self._located(super().rsplit(sep, maxsplit), sep)

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """As of plain text; each part is traced."""
        before, middle, _ = super().partition(sep)
        return self._three(len(before), len(middle))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """As of plain text; each part is traced."""
        before, middle, _ = super().rpartition(sep)
        return self._three(len(before), len(middle))

    def replace(self, old: str, new: str, /, count: SupportsIndex = -1) -> "Traced":
        """As of plain text; what is put in counts as the template's."""
        if not old:
            refuse()
        return Traced(runs_of(new)).join(self.split(old, count))

    def join(self, parts: Iterable[str], /) -> "Traced":
        """As of plain text."""
        return concatenated(chain.from_iterable((self if i else "", part) for i, part in enumerate(parts)))

    def lower(self) -> "Traced":
        """As of plain text."""
        return Traced((text.lower(), i) for text, i in self._runs)

    def upper(self) -> "Traced":
        """As of plain text."""
        return Traced((text.upper(), i) for text, i in self._runs)

    def quoted(self, quote: Callable[[str], str]) -> "Traced":
        """As `quote` writes a text in quotation marks, run by run."""
        whole = quote(plain(self))
        mark = [(whole[0], OWN)]
        made = Traced([*mark, *((quote(text)[1:-1], origin) for text, origin in self._runs), *mark])
        if made != whole:
            refuse()
        return made

    def written_in(self, block: int) -> "Traced":
        """The same text in a block `{% generation %}`."""
        return Traced((text, origin._replace(block=block)) for text, origin in self._runs)

    def _part(self, start: int, stop: int) -> "Traced":
        runs: list[Run] = []
        position = 0
        for text, origin in self._runs:
            runs.append((text[max(0, start - position) : max(0, stop - position)], origin))
            position += len(text)
        return Traced(runs)

    def _three(self, first: int, second: int) -> tuple[str, str, str]:
        cut = first + second
        return self._part(0, first), self._part(first, cut), self._part(cut, len(self))

    def _located(self, parts: list[str], sep: str | None) -> list[str]:
        """The same parts, traced: they follow each other, with a separator or white space between them."""
        found: list[str] = []
        position = 0
        for part in parts:
            position = self.index(part, position) if sep is None else position
            found.append(self._part(position, position + len(part)))
            position += len(part) + len(sep or "")
        return found


def traced(value: Any, index: int) -> Any:
    """A text, or a list or mapping as JSON has it, all of whose texts are from message `index`, the keys too."""
    if isinstance(value, str):
        return Traced([(value, TextOrigin(index))])
    if isinstance(value, Mapping):
        return {traced(key, index): traced(member, index) for key, member in value.items()}
    return [traced(member, index) for member in value] if isinstance(value, list | tuple) else value


def runs_of(text: str) -> tuple[Run, ...]:
    """The runs of a text; a plain one is the template's."""
    return text._runs if isinstance(text, Traced) else ((text, OWN),)


def concatenated(parts: Iterable[str]) -> Traced:
    """The texts one after the other."""
    return Traced(chain.from_iterable(map(runs_of, parts)))


def origins(text: str) -> set[int | None]:
    """The messages that some of a text is from; None: the template."""
    return {origin.message for _, origin in runs_of(text)}


def has_content(text: str) -> bool:
    """Whether some of a text is a message's."""
    return bool(origins(text) - {None})


def plain(text: str) -> str:
    """The same text without its origin: not for what is rendered."""
    return "".join(part for part, _ in runs_of(text))


def changed(text: str, change: Callable[[str], Any]) -> Any:
    """What `change` makes of a plain text, a text or a list of texts, with the origin of `text`. Raises `ValueError`
    if it has several: then nobody knows which of them a character is from."""
    found = {origin for _, origin in runs_of(text)}
    if len(found) > 1:
        refuse()
    result = change(plain(text))
    origin = next(iter(found), OWN)
    made = [Traced([(part, origin)]) for part in (result if isinstance(result, list) else [result])]
    return made if isinstance(result, list) else made[0]


def refuse() -> NoReturn:
    """Raises `ValueError`: what a template does with a content cannot be traced."""
    raise ValueError(
        "it changes a message in a way that cannot be followed; cut, strip, join or replace in a content, or write it "
        "unchanged"
    )


def _of_one_origin(name: str) -> Callable[..., Any]:
    def method(self: Traced, *args: Any, **kwargs: Any) -> Any:
        return changed(self, lambda text: getattr(text, name)(*args, **kwargs))

    return method


def _only_plain(name: str) -> Callable[..., Any]:
    def method(self: Traced, *args: Any, **kwargs: Any) -> Any:
        if has_content(self):
            refuse()
        return getattr(plain(self), name)(*args, **kwargs)

    return method


CHANGED = ("capitalize", "casefold", "expandtabs", "splitlines", "swapcase", "title")
UNTRACED = (
    "__format__", "__mod__", "__mul__", "__repr__", "__rmod__", "__rmul__", "__str__", "center", "encode", "format",
    "format_map", "ljust", "rjust", "translate", "zfill",
)  # fmt: skip
for _name in CHANGED:
    setattr(Traced, _name, _of_one_origin(_name))
for _name in UNTRACED:
    setattr(Traced, _name, _only_plain(_name))
