"""Sources behind a module: found wherever they are imported, without running one."""

from pathlib import Path

import pytest

from lifecycle.core.sources import modules_behind, source_of

FIRST = """
import os
from json import loads
from behindthis.constants import NUMBER, Kind

def late(kind):
    match kind:
        case Kind.ONE:
            try:
                from behindthis import inner
            except ImportError:
                with open(inner) as file:
                    from behindthis.inner.deepest import function, Missing
"""


def test_modules_are_found_wherever_they_are_imported_and_none_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, inner = tmp_path / "behindthis", tmp_path / "behindthis" / "inner"
    inner.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "first.py").write_text(FIRST)
    (package / "unused.py").touch()
    for file in (package / "constants.py", inner / "__init__.py", inner / "deepest.py"):
        file.write_text("raise AssertionError('run')\n")
    (inner / "deepest.py").write_text("from behindthis import first  # in a circle\nraise AssertionError('run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = {"first", "constants", "inner", "inner.deepest"}
    assert modules_behind("behindthis.first", "behindthis") == {f"behindthis.{name}" for name in names}
    assert modules_behind("behindthis.first", "behindthis.inner") == {
        "behindthis.first", "behindthis.inner.deepest",
    }  # fmt: skip
    assert source_of("behindthis.first") == FIRST.encode()
