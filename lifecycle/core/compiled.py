"""Numba's decorators for the loops in `compiled_*.py`. Imported late, as Numba takes half a second.

Machine code is kept between processes. Numba makes it anew when the file of a function changes; but a loop has also
the constants and the loops of other files in it, so here it is made anew when any source behind its file changes.

The first start of the data stage compiles for 15 s. So loops copy arrays an element at a time: where an array is
assigned to a slice, the message that says which shapes do not fit is compiled, too (1.4 s).
"""

import hashlib
import importlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit, types
from numba.core.caching import InTreeCacheLocator, UserProvidedCacheLocator, UserWideCacheLocator
from numba.np import linalg

from lifecycle.core.sources import modules_behind, source_of


class _BySources:
    """A place for machine code that is stamped with the sources behind a function's module."""

    def __init__(self, function: Any, file: str) -> None:
        super().__init__(function, file)  # pyrefly: ignore[bad-argument-count] - a locator of Numba comes behind
        self._module = function.__module__

    def get_source_stamp(self) -> bytes:
        """The hash of all these sources; code that has another stamp is not used."""
        return _stamp(self._module)


class InTree(_BySources, InTreeCacheLocator):
    """In `__pycache__`, beside the module."""


class UserProvided(_BySources, UserProvidedCacheLocator):
    """In the folder that `NUMBA_CACHE_DIR` names."""


class UserWide(_BySources, UserWideCacheLocator):
    """In the user's folder for caches, if the others cannot be written."""


class Temporary(_BySources, UserWideCacheLocator):
    """In a folder of the user's among temporary files, if there is no other: a container's user may have no home, and
    without a place Numba refuses to compile. What is loaded from there runs, so nobody else may write it."""

    def __init__(self, function: Any, file: str) -> None:
        super().__init__(function, file)
        self._own = Path(tempfile.gettempdir(), f"lifecycle-compiled-{os.geteuid()}")
        self._cache_path = str(self._own / self.get_suitable_cache_subpath(file))

    def ensure_cache_path(self) -> None:
        """Makes the folder; raises `PermissionError` if another user may have made it."""
        self._own.mkdir(mode=0o700, exist_ok=True)
        found = self._own.lstat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(f"{self._own} is not this user's alone")
        super().ensure_cache_path()


@cache
def _stamp(module: str) -> bytes:
    total = hashlib.sha256()
    for name in sorted(modules_behind(module, module.partition(".")[0])):
        total.update(f"{name}\0".encode() + source_of(name))
    return total.digest()


def _no_products() -> None:
    raise ImportError


# Numba asks whether products of matrices can be compiled, which no loop here has. To answer, it would load SciPy's
# linear algebra: 0.2 s of each process.
_ensure_blas, linalg.ensure_blas = linalg.ensure_blas, _no_products
importlib.import_module("numba.np.arraymath")  # asks once
linalg.ensure_blas = _ensure_blas

_PLACES = ",".join(f"{__name__}.{kind.__name__}" for kind in (UserProvided, InTree, UserWide, Temporary))
config.CACHE_LOCATOR_CLASSES = _PLACES  # pyrefly: ignore[missing-attribute] - set as Numba is imported


def _compiling(**options: Any) -> Any:
    """A decorator for functions that are compiled once for all integers. Numba does so for each constant that a caller
    hands them: a fifth of all time that compiling took."""

    def decorate(function: Any) -> Any:
        made: Any = njit(cache=True, nogil=True, **options)(function)
        template_for = made.get_call_template
        made.get_call_template = lambda args, kws: template_for(tuple(map(types.unliteral, args)), kws)
        return made

    return decorate


compiled: Any = _compiling()
inlined: Any = njit(cache=True, nogil=True, inline="always")
# Without counts of references to arrays: where nearly each step is a call with ten of them, they take most of the time.
uncounted: Any = _compiling(_nrt=False)
