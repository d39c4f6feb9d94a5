"""What of a rendered conversation the assistant says: from a template's marks, else by the difference of prefixes.

With `{% generation %}` in a template, what it marks is said, and nothing else. Without, an assistant's turn begins
where its prompt ends, and ends where the conversation would end with it: the text between contents is compared with
that of the conversation up to the turn, with the generation prompt, and of the conversation that ends with the turn. Up
to where both agree it is the prompt's, or the turn's. Special tokens agree as wholes.

The comparison is of the text beside the turn only, so it also finds a turn whose conversation changes further above, as
where a template cuts thoughts. What was found once holds wherever the template writes the same text between contents,
so a conversation is rendered once more for a new kind of turn, not for every turn.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, takewhile

GIVEN = -1  # in the place of a message's index: what the request gives beside its messages
MEMORY = 4096  # kinds of turns that are remembered

type Turn = tuple[int, int, int]  # the characters [start, stop) that a message's turn is, and the message's index
type Prefix = Callable[[int, bool], Sequence["Piece"]]  # the first messages rendered, with the generation prompt or not


@dataclass(frozen=True)
class Piece:
    """A part of rendered text: a special token, a content (of `message`), or the template's other text."""

    text: str
    start: int
    message: int | None = None
    special: int | None = None
    block: int | None = None  # the number of its `{% generation %}` block

    @property
    def stop(self) -> int:
        """The position of the character after it."""
        return self.start + len(self.text)

    @property
    def is_content(self) -> bool:
        """Whether it is a message's."""
        return self.message is not None and self.message != GIVEN


def marked_turns(pieces: Sequence[Piece], roles: Sequence[str]) -> Iterator[Turn]:
    """The turns that the template marks. A block without a content is of the assistant's message that is next."""
    assistants = [i for i, role in enumerate(roles) if role == "assistant"]
    newest = -1
    for block, group in groupby(pieces, key=lambda piece: piece.block):
        part = list(group)
        contents = [piece.message for piece in part if piece.is_content and piece.message is not None]
        if block is None:
            newest = max([newest, *contents])
            continue
        said = next((i for i in contents if roles[i] == "assistant"), None)
        if said is None:
            said = next((i for i in assistants if i > newest), assistants[-1] if assistants else None)
        if said is not None:
            newest = max(newest, said)
            yield part[0].start, part[-1].stop, said


class TurnFinder:
    """Finds turns by difference, and remembers the kinds of turns that it has found."""

    def __init__(self) -> None:
        self._memory: dict[object, tuple[int, int, int]] = {}

    def turns(self, pieces: Sequence[Piece], roles: Sequence[str], prefix: Prefix, context: object) -> Iterator[Turn]:
        """The assistant's turns that have a content. `context` is what else decides the template's text, hashable."""
        places: dict[int, list[int]] = {}
        for number, piece in enumerate(pieces):
            if piece.is_content and piece.message is not None:
                places.setdefault(piece.message, []).append(number)
        for index, numbers in sorted(places.items()):
            if roles[index] == "assistant":
                window = _Window.around(pieces, numbers[0])
                elsewhere = len(numbers) - len(window.joints)  # contents beyond the next message's
                start, stop = self._edges(window, roles, prefix, (elsewhere, context))
                yield start, stop, index

    def _edges(self, window: "_Window", roles: Sequence[str], prefix: Prefix, context: object) -> tuple[int, int]:
        neighbours = (
            None if window.previous is None else roles[window.previous],
            *roles[window.index + 1 : window.index + 2],
        )
        kind = (window.kind, neighbours, context)
        known = self._memory.get(kind)
        if known is not None:
            joint = list(window.signs)[known[1]]
            return window.placed(known[0], joint, window.signs[joint].lead + known[2])
        prompt, answered = prefix(window.index, True) if window.index else (), prefix(window.index + 1, False)
        before, joint, after = window.edges(prompt, answered)
        sign = window.signs.get(joint)
        is_sure = bool(answered) and (bool(prompt) or not window.index)  # no prefix was refused for what it says
        if is_sure and sign is not None and after >= sign.lead:
            if len(self._memory) >= MEMORY:
                self._memory.clear()
            self._memory[kind] = before, list(window.signs).index(joint), after - sign.lead
        return window.placed(before, joint, after)


@dataclass(frozen=True)
class _Sign:
    """What of a joint tells the kind of a turn: the text after its first `lead` characters."""

    lead: int
    text: tuple[object, ...]


@dataclass(frozen=True)
class _Window:
    """A turn's contents with the text before, between and after them: `joints[n]` follows the content `n`."""

    index: int
    previous: int | None  # the message whose content is before
    first: int  # where the first content begins
    before: Sequence[Piece]
    joints: Sequence[Sequence[Piece]]
    ends: Sequence[int]  # where each content ends

    @classmethod
    def around(cls, pieces: Sequence[Piece], number: int) -> "_Window":
        """That of the message whose first content is piece `number`."""
        index = pieces[number].message
        assert index is not None
        begin = number
        while begin and not pieces[begin - 1].is_content:
            begin -= 1
        joints: list[list[Piece]] = []
        ends: list[int] = []
        for position in range(number, len(pieces)):
            piece = pieces[position]
            if not piece.is_content:
                joints[-1].append(piece)
            elif piece.message == index:
                joints.append([])
                ends.append(piece.stop)
            else:
                break
        previous = pieces[begin - 1].message if begin else None
        return cls(index, previous, pieces[number].start, pieces[begin:number], joints, ends)

    @cached_property
    def signs(self) -> dict[int, _Sign]:
        """What tells the kind of a turn, by joint: all from a special token on, and the last text. What is between the
        arguments of a call does not, nor a number among them, which is the template's text."""
        signs: dict[int, _Sign] = {}
        for number, joint in enumerate(self.joints):
            lead = list(takewhile(lambda piece: piece.special is None, joint))
            if len(lead) < len(joint):
                signs[number] = _Sign(_length(lead), _plain(joint[len(lead) :]))
            elif number == len(self.joints) - 1:
                signs[number] = _Sign(0, _plain(joint))
        return signs

    @property
    def kind(self) -> object:
        """What is equal for turns of one kind."""
        return _plain(self.before), tuple(sign.text for sign in self.signs.values())

    def placed(self, before: int, joint: int, after: int) -> tuple[int, int]:
        """Where the turn begins and ends, from what `edges` says."""
        return self.first - _length(self.before) + before, self.ends[joint] + after

    def edges(self, prompt: Sequence[Piece], answered: Sequence[Piece]) -> tuple[int, int, int]:
        """How many characters of `before` are the prompt's; the joint in which the turn ends, and after how many.

        `prompt` and `answered` are the conversations before the turn and with it, empty if the template refuses them.
        """
        tail = _tail(prompt)
        previous = prompt[-len(tail) - 1].message if len(tail) < len(prompt) else None
        is_same = bool(prompt) and self.previous == previous
        before = _agreement(self.before, tail) if is_same else _length(self.before)
        joint, after = self._end(_tail(answered), sum(piece.message == self.index for piece in answered))
        return before, joint, after

    def _end(self, tail: Sequence[Piece], count: int) -> tuple[int, int]:
        """Where the text `tail` that ends a turn of `count` contents is found, and how much of it.

        A template may write a content once more in the next turn (gpt-oss the name of a tool), or leave one out.
        """
        number = min(count or len(self.joints), len(self.joints)) - 1
        special = next((n for n, piece in enumerate(tail) if piece.special is not None), None)
        if special is not None:
            agreed = [_agreement(joint, tail) for joint in self.joints]
            fitting = agreed.index(max(agreed))
            if agreed[fitting] >= _length(tail[: special + 1]):
                return fitting, agreed[fitting]
        # Without a special token of its own, the turn ends with the one that begins the next: GLM stops at <|user|>.
        lead = list(takewhile(lambda piece: piece.special is None, self.joints[number]))
        if len(lead) < len(self.joints[number]):
            return number, _length(self.joints[number][: len(lead) + 1])
        return number, _agreement(self.joints[number], tail)


def _tail(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces after the last content."""
    return list(takewhile(lambda piece: not piece.is_content, reversed(pieces)))[::-1]


def _length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.text) for piece in pieces)


def _plain(pieces: Sequence[Piece]) -> tuple[object, ...]:
    return tuple((piece.text, piece.special) for piece in pieces)


def _agreement(found: Sequence[Piece], wanted: Sequence[Piece]) -> int:
    """Characters of `found` up to which both are equal, special tokens as wholes."""
    length = 0
    for one, other in zip(found, wanted, strict=False):
        if one.special != other.special:
            break
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.text, other.text, strict=False)))
        length += shared
        if shared < max(len(one.text), len(other.text)):
            break
    return length
