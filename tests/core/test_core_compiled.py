"""Compiled loops: machine code that is kept is not used once a source behind it has changed."""

import subprocess
import sys
from pathlib import Path

LOOPS = """
from lifecycle.core.compiled import compiled
from own.numbers import NUMBER

@compiled
def number():
    return NUMBER
"""
ASK = (
    "from own.loops import number; found = number(); "
    "print(found, sum(number.stats.cache_hits.values()), sum(number.stats.cache_misses.values()))"
)


def asked(folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", ASK], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_constant_of_another_file_is_the_one_that_is_there(tmp_path: Path) -> None:
    package = tmp_path / "own"
    package.mkdir()
    for name, text in (("__init__", ""), ("loops", LOOPS), ("numbers", "from own.given import NUMBER\n")):
        (package / f"{name}.py").write_text(text)
    given = package / "given.py"
    given.write_text("NUMBER = 1\n")
    assert [asked(tmp_path), asked(tmp_path)] == ["1 0 1\n", "1 1 0\n"]
    given.write_text("NUMBER = 20\n")  # of another size: Python may keep what it compiled of one as large, as new
    assert asked(tmp_path) == "20 0 1\n"


CALLS = """
import sys
from lifecycle.core.compiled import compiled

@compiled
def next_one(number):
    return number + 1

@compiled
def sums():
    return next_one(1) + next_one(2) + next_one(3)

print(sums(), len(next_one.signatures), "scipy.linalg" in sys.modules)
"""


def test_constants_make_no_versions_of_a_loop_and_no_loop_loads_linear_algebra(tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(CALLS)
    told = subprocess.run(
        [sys.executable, "-c", "import calls"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout == "9 1 False\n"
