"""The table of what fits where: its lines are configs that exist, on topologies that they fill, and the kept page's."""

from dataclasses import replace
from itertools import takewhile

import pytest

from benchmarks.fit import (
    DECODE_LINES,
    LINES,
    STAGE_LINES,
    DecodeLine,
    FitLine,
    _decode_cells,
    _decode_results,
    _results,
    _stage_cells,
    _stage_results,
)  # fmt: skip
from benchmarks.fit_page import COLUMNS, DECODE_COLUMNS, PUBLISHED, STAGE_COLUMNS, page, row_of
from lifecycle.planning.run_file import StepConfig
from lifecycle.planning.search.candidates import Candidate, mesh_name
from lifecycle.planning.search.footprint import footprint
from lifecycle.planning.topology import check_fits, parse_topology
from tests.planning.fakes import program_plan
from tests.planning.shipped import ROOT, load


def line_id(line: FitLine) -> str:
    return f"{line.name}-{line.topology}"


def step_of(line: FitLine) -> StepConfig:
    return line.step(ROOT / "configs")


@pytest.mark.parametrize("line", (*LINES, *STAGE_LINES), ids=line_id)
def test_a_lines_config_loads_and_its_mesh_is_the_whole_topology(line: FitLine) -> None:
    step = step_of(line)
    check_fits(parse_topology(line.topology), step.mesh.plain())
    step.model.check_mesh(step.mesh)


def test_every_large_run_and_every_preset_that_no_run_has_is_in_a_line() -> None:
    large = {path.stem for path in (ROOT / "configs").glob("*_v[0-9]*.yaml")}
    presets = {path.stem for path in (ROOT / "configs" / "models").glob("*.yaml")}
    lines = {line.name for line in (*LINES, *STAGE_LINES)}
    planned = [load(name).model for name in lines - presets]
    assert large <= lines
    assert {preset for preset in presets - lines if load("debug", f"model={preset}").model not in planned} == set()
    assert len({(line.topology, line.config, line.changes) for line in LINES}) == len(LINES)


@pytest.mark.parametrize("line", [line for line in LINES if line.name != line.config], ids=line_id)
def test_a_preset_put_into_a_run_should_fit_by_arithmetic(line: FitLine) -> None:
    step = step_of(line)
    train = step.train
    assert train.remat is not None
    candidate = Candidate(step.mesh, train.grad_accum, "own", train.remat, train.loss_chunks)
    chip = parse_topology(line.topology).chip
    assert footprint(step.model, train, candidate, chip).total_bytes < 0.9 * chip.hbm_bytes


def kept_rows(columns: tuple[str, ...], names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The cells of the columns `names` in the kept page's table with these columns."""
    lines = (ROOT / "docs" / "fit.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| " + " | ".join(columns) + " |") + 2
    rows = [line.strip("| ").split(" | ") for line in takewhile(lambda line: line.startswith("| "), lines[start:])]
    return [tuple(row[columns.index(name)] for name in names) for row in rows]


def test_the_kept_page_has_these_lines() -> None:
    names = ("model", "topology", "mesh")
    assert kept_rows(COLUMNS, names) == [(line.name, line.topology, mesh_name(step_of(line).mesh)) for line in LINES]


def test_the_kept_page_has_lines_of_stages_in_their_order() -> None:
    """A line that the compiler has not made yet is missing."""
    staged = [_stage_cells(line, ROOT / "configs") for line in STAGE_LINES]
    kept = kept_rows(STAGE_COLUMNS, STAGE_COLUMNS[: len(staged[0])])
    assert kept == [cells for cells in staged if cells in kept]


def test_a_stage_takes_the_time_of_all_its_programs_and_the_memory_of_the_largest() -> None:
    update, decode = program_plan(needs=10 * 10**9), replace(program_plan(0.01, needs=50 * 10**9), runs_per_step=300.0)
    decode = replace(decode, kind="decode")
    assert _stage_results([update, decode], 100 * 10**9) == (
        "50.0", "50%", "0", "1,000", "0%", "", "", "10.0", "4.0",
    )  # fmt: skip
    assert _stage_results([update, replace(decode, fits=False)], 100 * 10**9)[2] == "does not fit"


def test_the_kept_page_has_lines_of_decoding_in_their_order() -> None:
    """A line that the compiler has not made yet is missing; one per family is not."""
    decoded = [_decode_cells(line, ROOT / "configs") for line in DECODE_LINES]
    kept = kept_rows(DECODE_COLUMNS, DECODE_COLUMNS[: len(decoded[0])])
    assert kept == [cells for cells in decoded if cells in kept]
    assert {"llama3_8b_v5p_128", "llama3_70b_v6e_256", "mixtral_8x7b_v5p_128", "deepseek_v3_v5p_1024"} <= {
        cells[0] for cells in kept
    }


@pytest.mark.parametrize("line", DECODE_LINES, ids=lambda line: f"{line.preset or line.config}-{line.topology}")
def test_a_decode_lines_mesh_is_the_whole_topology_and_cuts_the_model(line: DecodeLine) -> None:
    check_fits(parse_topology(line.topology), line.mesh.plain())
    line.model(ROOT / "configs").check_mesh(line.mesh)
    assert line.num_slots % (line.mesh.replica * line.mesh.fsdp * line.mesh.expert) == 0


def test_what_does_not_fit_has_its_memory_and_no_speed() -> None:
    plan, hbm_bytes = program_plan(fits=False, needs=150 * 10**9), 100 * 10**9
    expected = ("150.0", "150%", "does not fit", "", "", "")
    assert _results(plan, hbm_bytes) == expected
    assert _decode_results([plan], hbm_bytes) == _decode_results([plan, plan], hbm_bytes) == (*expected, "")
    made = page(["| a |"], ["| c |"], ["| b |"]).removesuffix(PUBLISHED.read_text(encoding="utf-8"))
    assert made.count("|---") == len(COLUMNS) + len(STAGE_COLUMNS) + len(DECODE_COLUMNS)


def test_a_line_that_is_not_made_yet_stays_as_it_was() -> None:
    kept = ["| a | bc | 0 |", "| a | b | 1 |"]
    assert row_of(("a", "b"), kept) == "| a | b | 1 |"
    assert row_of(("a",), kept[:1]) == "| a | bc | 0 |" and row_of(("c",), kept) == ""
