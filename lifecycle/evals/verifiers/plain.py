"""Values between the code under test and its tests, as JSON: data of Python's own types, and marks for everything else.

The tests get copies that they build themselves. So an object that claims to equal everything stays behind, and so
does a subclass of `int` or `list` that does: of these only the content is sent. What is no data, such as an instance of
a class of the code, is sent as a handle, by which the other side may use it.
"""

import datetime
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MARK = "$"
LARGE_INT = 1 << 10_000  # longer decimals are slow, and refused by Python's own limit
MOMENTS = {"date": datetime.date, "datetime": datetime.datetime, "time": datetime.time}

type Keep = Callable[[Any], dict[str, Any]]  # what is no data -> its mark
type Find = Callable[[dict[str, Any]], Any]

# A type's content as a list of values, and how the type is made of them again; by its name in a mark.
PARTS: dict[str, tuple[type, Callable[[Any], Any], Callable[[list[Any]], Any]]] = {
    "tuple": (tuple, tuple.__iter__, tuple),
    "set": (set, set.__iter__, set),
    "frozenset": (frozenset, frozenset.__iter__, frozenset),
    "deque": (deque, deque.__iter__, deque),
    "dict": (dict, lambda value: (part for pair in dict.items(value) for part in pair),
             lambda parts: dict(zip(parts[::2], parts[1::2], strict=True))),
    "complex": (complex, lambda value: (complex.real.__get__(value), complex.imag.__get__(value)),
                lambda parts: complex(*parts)),
    "range": (range, lambda value: (value.start, value.stop, value.step), lambda parts: range(*parts)),
    "fraction": (Fraction, lambda value: (value.numerator, value.denominator), lambda parts: Fraction(*parts)),
    "timedelta": (datetime.timedelta, lambda value: (value.days, value.seconds, value.microseconds),
                  lambda parts: datetime.timedelta(*parts)),
}  # fmt: skip
EXACT = {"fraction", "timedelta"}  # subclasses of these could make up their content


def encoded(value: Any, keep: Keep) -> Any:
    """A value as JSON-ready data; `keep` marks what is no data. Raises `RecursionError` for one that holds itself."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -LARGE_INT < number < LARGE_INT else {MARK: "int", "value": hex(number)}
    if isinstance(value, list):
        return [encoded(item, keep) for item in list.__iter__(value)]
    if isinstance(value, bytes | bytearray):
        name = "bytes" if isinstance(value, bytes) else "bytearray"
        return {MARK: name, "value": bytes(memoryview(value)).hex()}
    return _encoded_parts(value, keep)


def _encoded_parts(value: Any, keep: Keep) -> Any:
    for name, (kind, parts, _) in PARTS.items():
        if type(value) is kind or (isinstance(value, kind) and name not in EXACT):
            return {MARK: name, "value": [encoded(part, keep) for part in parts(value)]}
    if type(value) is Decimal:
        return {MARK: "decimal", "value": str(value)}
    for name, kind in MOMENTS.items():
        if type(value) is kind:
            return {MARK: name, "value": value.isoformat()}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encoded(value.tolist(), keep)  # of an array the nested lists
    return keep(value)


def decoded(value: Any, find: Find) -> Any:
    """The value of JSON-ready data; `find` gives that of a mark that is no data.

    Raises `ValueError`, `TypeError`, `LookupError` or `ArithmeticError` for what `encoded` does not make.
    """
    if isinstance(value, list):
        return [decoded(item, find) for item in value]
    if not isinstance(value, dict):
        return value
    name, content = value[MARK], value.get("value", "")
    if name in PARTS:
        return PARTS[name][2]([decoded(part, find) for part in content])
    if name == "int":
        return int(content, 16)
    if name in ("bytes", "bytearray"):
        return (bytes if name == "bytes" else bytearray).fromhex(content)
    if name == "decimal":
        return Decimal(content)
    return MOMENTS[name].fromisoformat(content) if name in MOMENTS else find(value)
