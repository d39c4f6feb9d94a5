"""Fingerprints: a lowered program's identity without the names in its source. Equal fingerprints are one program.

A lowered program's text also has names that decide nothing: of functions and meshes, of arguments and results, and
source locations inside a kernel's configuration. Without them, an edit that changes no program changes no fingerprint.
Kernels keep their names: their work is read from them.
"""

import hashlib
import re
from typing import TYPE_CHECKING

from lifecycle.model.moe import SELDOM

if TYPE_CHECKING:
    from jax.stages import Lowered

_SYMBOL = r'@(?:"[^"]*"|[\w.$\-]+)'
_DEFINED = re.compile(rf"(?:^module|func\.func(?: public| private)?|sdy\.mesh) ({_SYMBOL})", re.MULTILINE)
_NAMED_INFO = re.compile(r'(?:, )?jax\.(?:arg_info|result_info) = "[^"]*"')
_DEBUG_LOCATIONS = re.compile(r", \\22debug_locations\\22: \\22[A-Za-z0-9+/=]*\\22")
_SELDOM = re.compile(rf'^#loc.*"[^"]*\b{SELDOM}\b', re.MULTILINE)


def fingerprint(lowered: "Lowered") -> str:
    """SHA-256 of a program's text without names and locations. Loops that the model's code marks as seldom needed are
    included: the mark is a location, and the reader of the compiled program counts such loops by it."""
    marks = len(_SELDOM.findall(lowered.as_text(debug_info=True)))
    return hashlib.sha256(f"{anonymous(lowered.as_text())}\nseldom: {marks}\n".encode()).hexdigest()


def anonymous(text: str) -> str:
    """StableHLO text with its own symbols numbered in order of appearance, and without names of arguments and results
    and kernels' source locations. Names of custom calls and kernels stay."""
    text = _DEBUG_LOCATIONS.sub("", _NAMED_INFO.sub("", text))
    defined = set(_DEFINED.findall(text))
    numbers: dict[str, str] = {}

    def numbered(symbol: re.Match[str]) -> str:
        return numbers.setdefault(symbol[0], f"@{len(numbers)}") if symbol[0] in defined else symbol[0]

    return re.sub(_SYMBOL, numbered, text)
