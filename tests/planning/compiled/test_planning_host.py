"""Copies to the host's memory and back: bytes, direction, overlap and waits."""

from dataclasses import replace

import pytest

from lifecycle.planning.chips import CHIPS
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.host import FROM, TO, host_moves
from lifecycle.planning.compiled.program import Program
from lifecycle.planning.compiled.timeline import Timeline
from lifecycle.planning.estimate.network import Network
from lifecycle.planning.estimate.step import estimate_step
from lifecycle.planning.topology import parse_topology
from tests.planning.fakes import coordinates
from tests.planning.texts import HEAD, X, cycles, entry

PIECE = 8 * 128 * 4
STACK = "f32[6,8,128]{2,1,0:S(5)}"
SPACE = f'%stack = {STACK} custom-call(), custom_call_target="AllocateBuffer"'
ZERO = "%i = s32[] constant(0)"
PUT = (
    f"%put = (({STACK}, f32[1,8,128]{{2,1,0}}, s32[]), {STACK}, u32[]{{:S(2)}}) "
    "dynamic-update-slice-start(%stack, %piece, %i)"
)
PUT_DONE = f"%kept = {STACK} dynamic-update-slice-done(%put)"
GET = (
    f"%get = (({STACK}, s32[]), f32[1,8,128]{{2,1,0}}, u32[]{{:S(2)}}) dynamic-slice-start(%kept, %i), "
    "dynamic_slice_sizes={1,8,128}"
)
GET_DONE = "%back = f32[1,8,128]{2,1,0} dynamic-slice-done(%get)"
THERE_AND_BACK = HEAD + entry(
    X,
    ZERO,
    SPACE,
    "%piece = f32[1,8,128]{2,1,0} bitcast(%x)",
    PUT,
    f"%work = f32[8,128]{{1,0}} negate(%x), {cycles(700)}",
    PUT_DONE,
    GET,
    GET_DONE,
    f"%y = f32[1,8,128]{{2,1,0}} negate(%back), {cycles(100)}",
)


def test_slices_put_into_and_taken_from_the_hosts_memory_are_moves_of_the_slice() -> None:
    to, back = host_moves(Program(parse_module(THERE_AND_BACK)))
    assert (to.kind, to.axes, to.payload_bytes, to.wire_bytes, to.runs) == (TO, ("host",), PIECE, PIECE, 1)
    assert (back.kind, back.payload_bytes, back.begins, back.ends) == (FROM, PIECE, "get", "back")
    assert (to.overlapped_cycles, to.is_overlapped, back.is_overlapped) == (700, True, False)


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        ("%y = f32[8,128]{1,0:S(5)} copy(%x)", TO, PIECE),
        ("%y = (f32[8,128]{1,0:S(5)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)", TO, PIECE),
        (f"%y = {STACK} dynamic-update-slice(%stack, %piece, %i)", TO, PIECE),
        ("%y = f32[1,8,128]{2,1,0} dynamic-slice(%stack, %i), dynamic_slice_sizes={1,8,128}", FROM, PIECE),
    ],
)
def test_other_copies_across_the_link_are_moves_too(line: str, kind: str, size: int) -> None:
    done = ("%z = f32[8,128]{1,0:S(5)} copy-done(%y)",) if "copy-start" in line else ()
    piece = "%piece = f32[1,8,128]{2,1,0} bitcast(%x)"
    (move,) = host_moves(Program(parse_module(HEAD + entry(X, ZERO, SPACE, piece, line, *done))))
    assert (move.kind, move.payload_bytes, move.is_async) == (kind, size, bool(done))


def test_copies_that_stay_on_the_device_or_on_the_host_cross_nothing() -> None:
    lines = (
        "%v = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)",
        "%w = f32[8,128]{1,0:S(1)} copy-done(%v)",
        f"%h = {STACK} copy(%stack)",
    )
    assert host_moves(Program(parse_module(HEAD + entry(X, SPACE, *lines)))) == []


@pytest.mark.parametrize(("copy_s", "waits_s"), [(500e-9, 500e-9), (900e-9, 200e-9 + 900e-9)])
def test_the_core_waits_for_the_host_where_its_work_does_not_hide_the_copy(copy_s: float, waits_s: float) -> None:
    program = Program(parse_module(THERE_AND_BACK))
    times = Timeline(program, host_moves(program), 1e9, {}, lambda _: copy_s).run()
    assert times.host_exposed_s == pytest.approx(waits_s)  # of the way back nothing is hidden
    assert (times.exposed_s, times.network_s) == (0.0, 0.0)
    assert times.host_s == pytest.approx(2 * copy_s)
    assert times.total_s == pytest.approx(800e-9 + waits_s)


def test_an_estimate_counts_the_link_at_its_rate_and_says_where_none_is_known() -> None:
    program, v5p = Program(parse_module(THERE_AND_BACK)), parse_topology("v5p:1x1x1")
    moves, mesh = host_moves(program), MeshShape(("fsdp",), (1,))
    got = estimate_step(program, moves, [], Network(v5p, mesh, coordinates(v5p)), v5p)
    assert got.host_roofline_s == pytest.approx(2 * PIECE / 16e9)
    assert got.network_roofline_s == 0.0
    assert [(row.kind, row.axes, row.payload_bytes, row.overlapped_bytes) for row in got.traffic] == [
        (TO, ("host",), PIECE, PIECE),
        (FROM, ("host",), PIECE, 0),
    ]
    assert any("waits for the host's memory" in line for line in got.trust)
    unknown = replace(v5p, chip=replace(CHIPS["v5p"], host_bytes_per_s=None))
    free = estimate_step(program, moves, [], Network(unknown, mesh, coordinates(v5p)), unknown)
    assert (free.host_roofline_s, free.times.host_exposed_s) == (0.0, 0.0)
    assert any("offloading is costed at nothing" in line for line in free.trust)


def test_every_chip_says_what_it_has_or_that_nothing_was_found() -> None:
    rates = {name: chip.host_bytes_per_s for name, chip in CHIPS.items()}
    assert rates == {
        "v4": 16e9, "v5e": 16e9, "v5p": 16e9, "v6e": 32e9, "tpu7x": None, "h100": 55e9, "h200": 55e9, "a100-80": 31.5e9,
        "b200": None,
    }  # fmt: skip
