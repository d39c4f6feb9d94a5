"""The table of what fits where: its rows are configs that exist, on topologies that they fill."""

from pathlib import Path

import pytest

from lifecycle.core.config import load_config
from lifecycle.planning.topology import check_fits, parse_topology
from lifecycle.stages.config import RunConfig
from lifecycle.stages.fit import COLUMNS, ROWS, Row, _page, _results
from tests.planning.test_planning_plan import planned

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.config}-{row.topology}")
def test_a_rows_config_loads_and_its_mesh_is_the_whole_topology(row: Row) -> None:
    config = load_config(RunConfig, CONFIGS / f"{row.config}.yaml", row.changes)
    check_fits(parse_topology(row.topology), config.mesh.plain())


def test_what_does_not_fit_has_its_memory_and_no_speed() -> None:
    assert _results(planned(fits=False, needs=150 * 10**9), None, 100 * 10**9) == (
        "150.0", "150%", "does not fit", "", "", "",
    )  # fmt: skip
    assert _page(["| a |"]).count("|---") == len(COLUMNS)
