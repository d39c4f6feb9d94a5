"""The table of what fits where: its rows are configs that exist, on topologies that they fill, and the kept page's."""

from itertools import takewhile

import pytest

from lifecycle.cli.fit import COLUMNS, ROWS, Row, _page, _results
from lifecycle.planning.search.candidates import Candidate, mesh_name
from lifecycle.planning.search.footprint import footprint
from lifecycle.planning.topology import check_fits, parse_topology
from tests.planning.fakes import program_plan
from tests.planning.shipped import ROOT, load, pretraining


def row_id(row: Row) -> str:
    return f"{row.name}-{row.topology}"


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_a_rows_config_loads_and_its_mesh_is_the_whole_topology(row: Row) -> None:
    check_fits(parse_topology(row.topology), load(row.config, *row.changes).mesh.plain())


def test_every_large_run_and_every_preset_that_no_run_has_is_in_a_row() -> None:
    large = {path.stem for path in (ROOT / "configs").glob("*_v[0-9]*.yaml")}
    presets = {path.stem for path in (ROOT / "configs" / "models").glob("*.yaml")}
    rows = {row.name for row in ROWS}
    planned = [load(name).model for name in rows - presets]
    assert large <= rows
    assert {preset for preset in presets - rows if load("debug", f"model={preset}").model not in planned} == set()
    assert len({(row.topology, row.config, row.changes) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name != row.config], ids=row_id)
def test_a_preset_put_into_a_run_should_fit_by_arithmetic(row: Row) -> None:
    config = load(row.config, *row.changes)
    train = pretraining(config)
    assert train.remat is not None
    whole = Candidate(config.mesh, train.grad_accum, "own", train.remat, train.loss_chunks)
    assert footprint(config.model, train, whole).total_bytes < 0.9 * parse_topology(row.topology).chip.hbm_bytes


def test_the_kept_page_has_these_rows() -> None:
    lines = (ROOT / "docs" / "fit.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| " + " | ".join(COLUMNS) + " |") + 2
    cells = [line.strip("| ").split(" | ") for line in takewhile(lambda line: line.startswith("| "), lines[start:])]
    kept = [(row[COLUMNS.index("model")], row[COLUMNS.index("topology")], row[COLUMNS.index("mesh")]) for row in cells]
    assert kept == [(row.name, row.topology, mesh_name(load(row.config, *row.changes).mesh)) for row in ROWS]


def test_what_does_not_fit_has_its_memory_and_no_speed() -> None:
    assert _results(program_plan(fits=False, needs=150 * 10**9), 100 * 10**9) == (
        "150.0", "150%", "does not fit", "", "", "",
    )  # fmt: skip
    assert _page(["| a |"]).count("|---") == len(COLUMNS)
