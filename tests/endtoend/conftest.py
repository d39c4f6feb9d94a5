"""One undisturbed run of the whole chain per test session; tests that change something work on a copy of it.

Its model has one layer of the config's two: most of the chain's time is the compilation of train steps.
"""

import fcntl
from pathlib import Path

import pytest
from command_line import MEASURED, Debug

ONE_LAYER = ("model.num_layers=1",)


@pytest.fixture(scope="session")
def undisturbed(session_folder: Path) -> Debug:
    """The finished chain, made by the first process of the session that asks for it; not to be changed."""
    run = Debug(session_folder / "undisturbed", settings=ONE_LAYER)
    run.root.mkdir(exist_ok=True)
    output = run.root / "output.txt"
    with (run.root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            output.write_text(run.succeed("run", MEASURED))
    return run


@pytest.fixture
def fresh(tmp_path: Path) -> Debug:
    """A run that has not begun."""
    return Debug(tmp_path / "runs", settings=ONE_LAYER)
