"""Compiled loops: machine code that is kept is not used once a source behind it has changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def asked(folder: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", ASK]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def package_of_loops(folder: Path, numbers: str) -> Path:
    package = folder / "own"
    package.mkdir()
    for name, text in (("__init__", ""), ("loops", LOOPS), ("numbers", numbers)):
        (package / f"{name}.py").write_text(text)
    return package


def test_a_constant_of_another_file_is_the_one_that_is_there(tmp_path: Path) -> None:
    package = package_of_loops(tmp_path, "from own.given import NUMBER\n")
    given = package / "given.py"
    given.write_text("NUMBER = 1\n")
    assert [asked(tmp_path), asked(tmp_path)] == ["1 0 1\n", "1 1 0\n"]
    given.write_text("NUMBER = 20\n")  # of another size: Python may keep what it compiled of one as large, as new
    assert asked(tmp_path) == "20 0 1\n"


def test_a_user_without_a_home_or_a_folder_beside_the_code_has_one_of_its_own(tmp_path: Path) -> None:
    (package_of_loops(tmp_path, "NUMBER = 1\n") / "__pycache__").touch()
    nowhere = {"XDG_CACHE_HOME": "/proc/nowhere", "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    assert [asked(tmp_path, **nowhere), asked(tmp_path, **nowhere)] == ["1 0 1\n", "1 1 0\n"]
    (own,) = tmp_path.glob("lifecycle-compiled-*")
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o777)
    with pytest.raises(subprocess.CalledProcessError):  # where others may write, no code is taken from
        asked(tmp_path, **nowhere)


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
