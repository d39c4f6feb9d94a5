"""Fingerprints: a lowered program's identity, independent of names. Equal fingerprints mean the same program.

A lowered program's text contains names that do not matter: those of functions and meshes, of arguments and results, and
source locations in a kernel's configuration. Without them, an edit that leaves the program unchanged leaves its
fingerprint unchanged. Kernels keep their names: their work is derived from them.
"""

import hashlib
import re
from typing import TYPE_CHECKING

from lifecycle.kernels.seldom import SELDOM

if TYPE_CHECKING:
    from jax.stages import Lowered

_SYMBOL = r'@(?:"[^"]*"|[\w.$\-]+)'
_DEFINED = re.compile(rf"(?:^module|func\.func(?: public| private)?|sdy\.mesh) ({_SYMBOL})", re.MULTILINE)
_NAMED_INFO = re.compile(r'(?:, )?jax\.(?:arg_info|result_info) = "[^"]*"')
_DEBUG_LOCATIONS = re.compile(r", \\22debug_locations\\22: \\22[A-Za-z0-9+/=]*\\22")
_SELDOM = re.compile(rf'^#loc.*"[^"]*\b{SELDOM}\b', re.MULTILINE)


def fingerprint(lowered: "Lowered") -> str:
    """SHA-256 of a program's text without names and locations, but with the number of its `seldom` marks.

    Such a mark is a location in the text. The model's code sets it on loops that are seldom needed, and how often a
    loop counts in the compiled program depends on it.
    """
    marks = len(_SELDOM.findall(lowered.as_text(debug_info=True)))
    return hashlib.sha256(f"{anonymous(lowered.as_text())}\nseldom: {marks}\n".encode()).hexdigest()


def anonymous(text: str) -> str:
    """StableHLO text without the names that do not matter.

    The symbols that it defines are numbered in order of appearance; names of arguments and results and kernels' source
    locations are removed. Names of custom calls and kernels stay.
    """
    text = _DEBUG_LOCATIONS.sub("", _NAMED_INFO.sub("", text))
    defined = set(_DEFINED.findall(text))
    numbers: dict[str, str] = {}

    def numbered(symbol: re.Match[str]) -> str:
        return numbers.setdefault(symbol[0], f"@{len(numbers)}") if symbol[0] in defined else symbol[0]

    return re.sub(_SYMBOL, numbered, text)
