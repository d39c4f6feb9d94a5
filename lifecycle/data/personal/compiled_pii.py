"""The compiled loops of `pii.py`, by Numba: where in texts personal data may be. Imported late, as `compiled_prose.py`
is.

They find windows of bytes that have a sign of it, such as an `@` or a run of digits; the rules of that sign read only
these. What must hold: what a rule's pattern finds in a text, it finds in a window of its sign.
"""

from typing import Any

import numpy as np

from lifecycle.core.compiled import compiled, inlined
from lifecycle.data.personal.pii_rule import Sign

COLUMNS = 6  # of a window: number of the text, sign, begin and end in its bytes, digits, those of the longest number
LEAST_DIGITS, FEW_DIGITS = 7, 6  # in a run; the fewer ones beside a capital or in `IPV4_NUMBERS`
IPV4_NUMBERS = 4
MAX_GAP = 5  # bytes between two numbers of a run
LEAD, TAIL = 6, 4  # bytes before and behind a run that belong to its window
_CUT_WORD = 40  # bytes of a word at its end that do, too: a number cut there would look whole
TOKEN_BYTES, CAPITALS = 16, 4  # of letters, digits, dashes and underscores in a row; without digits, of capitals in it
NAME_BYTES = 48  # before a sign of assignment, where a name is looked for
_NAMES = tuple(map(int.from_bytes, (b"pass", b"ecre", b"oken", b"cred", b"auth")))
_ENDS = tuple(map(int.from_bytes, (b"key", b"pwd")))  # of names
_DIGIT, _UPPER, _LOWER, _WORD, _TOKEN, _OPAQUE, _GAP, _HEX, _ADDRESS = (1 << bit for bit in range(9))
_BLANK, _LINE_FEED, _DASH, _COLON, _EQUALS, _AT = map(ord, " \n-:=@")
_LEAST_IBAN, _IBAN_BYTES = 15, 60
_ADDRESS_BYTES, _IPV6_BYTES, _KEY_BYTES, _VALUE_BYTES = 320, 80, 20_000, 300
_TOKEN_BEFORE, _TOKEN_BEHIND = 80, 8000


def byte_classes() -> Any:
    """The bits of each byte."""
    digits, small, capitals = b"0123456789", bytes(range(ord("a"), ord("z") + 1)), bytes(range(ord("A"), ord("Z") + 1))
    word = digits + small + capitals + b"_"
    classes = np.zeros(256, np.uint16)
    for bit, members in (
        (_DIGIT, digits), (_UPPER, capitals), (_LOWER, small), (_WORD, word), (_TOKEN, word + b"-"),
        (_OPAQUE, word + b"-.+/=~:"),  # what keys are written in
        (_GAP, b" .-/()+\xc2\xa0\xe2\x80\x89\x90\x91\x92\x93\xaf"),  # with the bytes of wider blanks and dashes
        (_HEX, digits + b"abcdefABCDEF:."),
        (_ADDRESS, bytes(set(range(33, 256)) - set(b"\"'<>()[]{},;`|\\"))),
    ):  # fmt: skip
        classes[list(members)] |= bit
    return classes


@inlined
def _put(windows: Any, num: Any, text: Any, sign: Any, begin: Any, end: Any, digits: Any, longest: Any) -> Any:
    """Notes a window, if there is room, or makes the last one longer, if it has this sign and reaches this one; returns
    how many there are."""
    if 0 < num <= len(windows):
        last = windows[num - 1]
        if last[0] == text and last[1] == sign and last[2] <= begin <= last[3]:
            last[3], last[4], last[5] = max(last[3], end), max(last[4], digits), max(last[5], longest)
            return num
    if num < len(windows):
        windows[num, 0], windows[num, 1], windows[num, 2] = text, sign, begin
        windows[num, 3], windows[num, 4], windows[num, 5] = end, digits, longest
    return num + 1


@inlined
def _end_of(text: Any, classes: Any, bits: Any, at: Any, most: Any) -> Any:
    """Where a stretch of some classes ends that begins at a place, at most so many bytes behind it."""
    end = min(len(text), at + most)
    while at < end and classes[text[at]] & bits:
        at += 1
    return at


@inlined
def _begin_of(text: Any, classes: Any, bits: Any, at: Any, most: Any) -> Any:
    """Where a stretch of some classes begins that ends before a place, at most so many bytes before it."""
    begin = max(0, at - most)
    while at > begin and classes[text[at - 1]] & bits:
        at -= 1
    return at


@compiled
def _is_gap(text: Any, classes: Any, begin: Any, end: Any) -> bool:
    return end - begin <= MAX_GAP and _end_of(text, classes, _GAP, begin, MAX_GAP) >= end


@inlined
def _behind(text: Any, classes: Any, run_end: Any) -> Any:
    """Where the window of a run of numbers ends."""
    end = run_end + TAIL
    is_in_word = end < len(text) and classes[text[end - 1]] & _WORD
    return _end_of(text, classes, _WORD, end, _CUT_WORD) if is_in_word else end


@inlined
def _is_enough(digits: Any, numbers: Any, has_capital: Any) -> Any:
    return digits >= LEAST_DIGITS or (digits == FEW_DIGITS and (has_capital or numbers >= IPV4_NUMBERS))


@compiled
def _numbers(text: Any, classes: Any, number: Any, windows: Any, num: Any) -> Any:
    """Notes runs of numbers, and what begins like an IBAN."""
    at = run = run_end = digits = longest = numbers = 0  # `digits` and `numbers` in the run; 0: there is none
    has_capital = False  # in the run, or just before it
    while at < len(text):
        if not classes[text[at]] & _WORD:
            at += 1
            continue
        begin, own, capitals = at, 0, 0
        while at < len(text) and classes[text[at]] & _WORD:
            own += classes[text[at]] & _DIGIT
            capitals += (classes[text[at]] & _UPPER) != 0
            at += 1
        if own == 0 and digits == 0:
            continue
        others = at - begin - own
        is_number = own and (others == 0 or (others == 1 and own >= 3) or (others <= 3 and own >= FEW_DIGITS))
        if digits and not (is_number and _is_gap(text, classes, run_end, begin)):
            if _is_enough(digits, numbers, has_capital):
                num = _put(
                    windows,
                    num,
                    number,
                    Sign.DIGITS,
                    max(0, run - LEAD),
                    _behind(text, classes, run_end),
                    digits,
                    longest,
                )
            digits = longest = numbers = 0
        if is_number:
            if digits == 0:
                run, has_capital = begin, False
                for before in range(max(0, begin - 2), begin):
                    has_capital |= (classes[text[before]] & _UPPER) != 0
            digits += own
            longest = max(longest, own)
            numbers += 1
            has_capital |= capitals > 0
            run_end = at
        if capitals >= 2 and _begins_iban(text, classes, begin, at):
            num = _put(windows, num, number, Sign.IBAN, begin, begin + _IBAN_BYTES, 0, 0)
    if _is_enough(digits, numbers, has_capital):
        num = _put(
            windows, num, number, Sign.DIGITS, max(0, run - LEAD), _behind(text, classes, run_end), digits, longest
        )
    return num


@compiled
def _tokens(text: Any, classes: Any, number: Any, windows: Any, num: Any) -> Any:
    """Notes long words with letters and digits, or with capitals, and what a key has around them."""
    at = noted = 0
    while at < len(text):
        if not classes[text[at]] & _TOKEN:
            at += 1
            continue
        begin, digits, letters, capitals = at, 0, 0, 0
        while at < len(text) and classes[text[at]] & _TOKEN:
            bits = classes[text[at]]
            digits += bits & _DIGIT
            letters += (bits & (_UPPER | _LOWER)) != 0
            capitals += (bits & _UPPER) != 0
            at += 1
        if at - begin >= TOKEN_BYTES and begin >= noted and letters and (digits or capitals >= CAPITALS):
            first = _begin_of(text, classes, _OPAQUE, begin, _TOKEN_BEFORE)
            noted = _end_of(text, classes, _OPAQUE, at, _TOKEN_BEHIND)
            num = _put(windows, num, number, Sign.TOKEN, first, noted + 1, 0, 0)
    return num


@compiled
def _begins_iban(text: Any, classes: Any, begin: Any, end: Any) -> bool:
    """Whether a word begins with two capitals and two digits, and is long or goes on behind a gap."""
    if end - begin < 4 or not classes[text[begin]] & classes[text[begin + 1]] & _UPPER:
        return False
    if not classes[text[begin + 2]] & classes[text[begin + 3]] & _DIGIT:
        return False
    return end - begin >= _LEAST_IBAN or (end < len(text) and (classes[text[end]] & _GAP) != 0)


@compiled
def _names_secret(text: Any, at: Any) -> bool:
    """Whether before a sign of assignment, in its line, stands a part of the name of a secret."""
    last = np.uint32(0)
    for place in range(max(0, at - NAME_BYTES), at):
        byte = text[place]
        last = (
            np.uint32(0) if byte == _LINE_FEED else np.uint32(np.uint32(last << np.uint32(8)) | np.uint32(byte | 0x20))
        )
        for end in _ENDS:
            if last & np.uint32(0xFFFFFF) == end:
                return True
        for name in _NAMES:
            if last == name:
                return True
    return False


@compiled
def _gives_digit(text: Any, classes: Any, at: Any) -> bool:
    """Whether a digit is in the first value behind a sign of assignment, or in the second behind a short word.

    Signs and blanks behind the window are not looked at: a ruler of `=` would be read once for each of them.
    """
    end = min(len(text), at + _VALUE_BYTES)
    while at < end and (text[at] == _COLON or text[at] == _EQUALS or text[at] == ord(">")):
        at += 1
    for _ in range(2):
        while at < end and (text[at] == _BLANK or text[at] == 9 or text[at] == ord('"') or text[at] == ord("'")):
            at += 1
        begin = at
        while at < len(text) and text[at] > _BLANK and at < begin + _VALUE_BYTES:
            if classes[text[at]] & _DIGIT:
                return True
            at += 1
        if at - begin > 8:
            return False
    return False


@compiled
def _spells_at(text: Any, at: Any) -> bool:
    """Whether `at` stands in brackets, of which the first is at this place."""
    at += 1
    at += at < len(text) and text[at] == _BLANK
    if at + 2 >= len(text) or text[at] | 0x20 != ord("a") or text[at + 1] | 0x20 != ord("t"):
        return False
    at += 2
    at += at < len(text) - 1 and text[at] == _BLANK
    return text[at] == ord(")") or text[at] == ord("]") or text[at] == ord("}")


@compiled
def _marks(text: Any, classes: Any, number: Any, windows: Any, num: Any) -> Any:
    """Notes what stands around an `@`, the word in brackets, colons between hexadecimal digits, assignments to the name
    of a secret, and blocks of keys."""
    ipv6_end = 0
    for at in range(len(text)):
        byte = text[at]
        if classes[byte] & _WORD or byte == _BLANK:
            continue
        if byte == _AT:
            begin = _begin_of(text, classes, _ADDRESS, at, _ADDRESS_BYTES)
            end = _end_of(text, classes, _ADDRESS, at, _ADDRESS_BYTES)
            if begin < at and end > at + 3:
                num = _put(windows, num, number, Sign.AT, begin, end + 1, 0, 0)
        elif byte in (_COLON, _EQUALS):
            if _gives_digit(text, classes, at) and _names_secret(text, at):
                num = _put(windows, num, number, Sign.ASSIGNED, max(0, at - NAME_BYTES), at + _VALUE_BYTES, 0, 0)
            if byte == _COLON and at >= ipv6_end:
                begin = _begin_of(text, classes, _HEX, at, _IPV6_BYTES)
                ipv6_end = _end_of(text, classes, _HEX, at, _IPV6_BYTES)
                colons, is_short = 0, False
                for place in range(begin, ipv6_end):
                    colons += text[place] == _COLON
                    is_short |= place > begin and text[place] == _COLON and text[place - 1] == _COLON
                if colons >= 6 or (is_short and ipv6_end - begin >= 7):
                    num = _put(windows, num, number, Sign.IPV6, begin, ipv6_end + 6, 0, 0)
        elif byte == _DASH:
            if at + 10 < len(text) and text[at + 5] == ord("B") and text[at + 6] == ord("E") and text[at + 4] == _DASH:
                num = _put(windows, num, number, Sign.KEY_BLOCK, at, at + _KEY_BYTES, 0, 0)
        elif (byte == ord("(") or byte == ord("[") or byte == ord("{")) and _spells_at(text, at):
            num = _put(windows, num, number, Sign.SPELT_AT, max(0, at - 80), at + 160, 0, 0)
    return num


@compiled
def find_windows(text: Any, ends: Any, classes: Any, windows: Any) -> Any:
    """Fills in the windows of texts, as far as there is room; returns how many there are, or at most are if it is more.

    `ends`: where each text begins and ends in the bytes. The windows of a text are in a row; one may end behind it.
    """
    num = 0
    for number in range(len(ends) - 1):
        own = text[ends[number] : ends[number + 1]]
        num = _numbers(own, classes, number, windows, num)
        num = _tokens(own, classes, number, windows, num)
        num = _marks(own, classes, number, windows, num)
    return num
