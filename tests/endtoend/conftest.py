"""One undisturbed run of the whole chain per test session; tests that change something work on a copy of it."""

from pathlib import Path

import pytest
from command_line import Debug


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Debug:
    """The finished chain; not to be changed."""
    run = Debug(tmp_path_factory.mktemp("undisturbed"))
    (run.root / "output.txt").write_text(run.succeed("run"))
    return run


@pytest.fixture
def fresh(tmp_path: Path) -> Debug:
    """A run that has not begun."""
    return Debug(tmp_path / "runs")
