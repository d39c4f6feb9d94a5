"""Bytes, axes and overlap of collectives."""

from collections import Counter

import pytest

from lifecycle.planning.compiled.collectives import Collective, collectives
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.program import Program
from tests.planning.small_programs import GOLDEN, GOLDEN_SHAPE, HIDDEN, LAYERS, LENGTH, ROWS, WIDTH
from tests.planning.texts import CHAIN, HANDED_OVER, HEAD, STARTED, X, cycles, entry, loop

MESH = MeshShape(("fsdp", "tensor"), (4, 2))


def found(text: str, mesh: MeshShape = MESH) -> list[Collective]:
    return collectives(Program(parse_module(text)), mesh)


def test_a_real_programs_traffic_is_what_its_arrays_say() -> None:
    payload: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for c in found(GOLDEN.read_text(encoding="utf-8"), GOLDEN_SHAPE):
        payload[c.kind, c.axes] += c.runs * c.payload_bytes
        assert not c.is_async
    weight = 2 * WIDTH * HIDDEN // 2  # bfloat16, cut over tensor
    hidden = 2 * ROWS // 2 * LENGTH * WIDTH
    assert payload == {
        ("all-gather", ("fsdp",)): LAYERS * 4 * weight,  # two weights, forward and backward
        ("reduce-scatter", ("fsdp",)): LAYERS * weight,
        ("all-reduce", ("fsdp",)): LAYERS * weight,  # the other gradient: the compiler sums and cuts
        ("all-reduce", ("tensor",)): LAYERS * 2 * hidden,
    }


@pytest.mark.parametrize(
    ("groups", "axes", "group_size"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",), 2),
        ("{{0,2,4,6},{1,3,5,7}}", ("fsdp",), 4),
        ("[4,2]<=[8]", ("tensor",), 2),
        ("[2,4]<=[4,2]T(1,0)", ("fsdp",), 4),
        ("[1,8]<=[8]", ("fsdp", "tensor"), 8),
        ("{}", ("fsdp", "tensor"), 8),
        ("mesh['fsdp'=4,'tensor'=2] {'tensor'}", ("tensor",), 2),
        ("mesh['fsdp'=4,'tensor'=2] {'fsdp','tensor'}", ("fsdp", "tensor"), 8),
    ],
)
def test_groups_are_named_by_the_mesh_axes_that_vary_in_them(
    groups: str, axes: tuple[str, ...], group_size: int
) -> None:
    reduce = f"%y = f32[8,128]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={groups}, to_apply=%add"
    (c,) = found(HEAD + entry(X, reduce))
    assert (c.axes, c.group_size, c.payload_bytes) == (axes, group_size, 4096)
    assert c.wire_bytes == 2 * 4096 * (group_size - 1) / group_size


def test_a_permutation_runs_over_the_axis_that_its_pairs_cross() -> None:
    pairs = "{{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}}"
    (c,) = found(HEAD + entry(X, f"%y = f32[8,128]{{1,0}} collective-permute(%x), source_target_pairs={pairs}"))
    assert (c.kind, c.axes, c.wire_bytes) == ("collective-permute", ("fsdp",), 4096)


def test_collectives_of_one_device_are_left_out() -> None:
    reduce = "%y = f32[8,128]{1,0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add"
    assert found(HEAD + entry(X, reduce)) == []


@pytest.mark.parametrize("text", [STARTED, HANDED_OVER, CHAIN])
def test_each_asynchronous_form_is_one_collective_with_the_work_that_stands_beside_it(text: str) -> None:
    (c,) = found(text)
    assert (c.kind, c.axes, c.group_size, c.payload_bytes) == ("all-gather", ("fsdp",), 4, 4 * 4096)
    assert c.is_async
    assert c.is_overlapped
    assert c.overlapped_cycles == 700
    assert Program(parse_module(text)).cycles in (800, 1100)  # the other core's 9,000 are not counted


def test_a_start_with_nothing_before_its_done_has_no_work_beside_it() -> None:
    lines = STARTED.splitlines()
    done = next(i for i, line in enumerate(lines) if "%g-done =" in line)
    lines[done - 1], lines[done] = lines[done], lines[done - 1]
    (c,) = found("\n".join(lines) + "\n")
    assert c.is_async
    assert not c.is_overlapped


def summed(kind: str, user: str) -> str:
    """A fusion round a sum, and what is taken of it inside."""
    groups = "replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add"
    return (
        HEAD
        + f"""%both (p: f32[8,128]) -> f32[2,128] {{
  %p = f32[8,128]{{1,0}} parameter(0)
  %i = s32[] constant(0)
  %all-reduce.1 = f32[8,128]{{1,0}} all-reduce(%p), {groups}
  ROOT %r = {user}
}}

"""
        + entry(X, f"%y = f32[2,128]{{1,0}} fusion(%x), kind={kind}, calls=%both")
    )


def test_a_fusion_of_a_sum_and_its_slice_is_a_reduce_scatter_and_a_slice_behind_a_sum_is_not() -> None:
    taken = "f32[2,128]{1,0} dynamic-slice(%all-reduce.1, %i), dynamic_slice_sizes={2,128}"
    (c,) = found(summed("kCustom", taken))
    assert (c.kind, c.axes, c.payload_bytes, c.wire_bytes) == ("reduce-scatter", ("fsdp",), 4096, 4096 * 3 / 4)
    assert not c.is_overlapped
    for kind, user in (("kOutput", taken), ("kCustom", "f32[8,128]{1,0} negate(%all-reduce.1)")):
        (c,) = found(summed(kind, user))
        assert (c.kind, c.wire_bytes) == ("all-reduce", 2 * 4096 * 3 / 4)


def test_a_ragged_exchange_sends_its_first_operand() -> None:
    ints = [f"%o{n} = s32[2]{{0}} parameter({n + 2})" for n in range(4)]
    line = "%y = f32[64,128]{1,0} ragged-all-to-all(%x, %b, %o0, %o1, %o2, %o3), replica_groups=[4,2]<=[8]"
    (c,) = found(HEAD + entry(X, "%b = f32[64,128]{1,0} parameter(1)", *ints, line))
    assert (c.kind, c.axes, c.payload_bytes, c.wire_bytes) == ("ragged-all-to-all", ("tensor",), 4096, 2048)


def test_what_crosses_slices_is_the_first_axis_and_ends_where_it_is_received() -> None:
    meeting = '_xla_host_transfer_rendezvous="psum.1_0",_xla_megascale_transfer_type="ALL_REDUCE"'
    sent = "(f32[8,128]{1,0}, u32[], token[])"
    text = HEAD + entry(
        X,
        "%t = token[] after-all()",
        f"%s = {sent} send(%x, %t), is_host_transfer=true, frontend_attributes={{{meeting}}}",
        f"%r = {sent} recv(%t), is_host_transfer=true, frontend_attributes={{{meeting}}}",
        f"%work = f32[8,128]{{1,0}} negate(%x), {cycles(500)}",
        "%sd = token[] send-done(%s), is_host_transfer=true",
        "%rd = (f32[8,128]{1,0}, token[]) recv-done(%r), is_host_transfer=true",
        "%y = f32[8,128]{1,0} get-tuple-element(%rd), index=0",
    )
    (c,) = found(text, MeshShape(("replica", "fsdp"), (2, 4), num_slices=2))
    assert (c.kind, c.axes, c.group_size, c.payload_bytes, c.ends) == ("all-reduce", ("replica",), 2, 4096, "rd")
    assert (c.is_async, c.overlapped_cycles) == (True, 500)


def test_a_loops_collective_counts_as_often_as_it_runs() -> None:
    text = loop("constant(0)", "1", "constant(5)").replace(
        "%z = f32[8,128] negate(%y)", "%z = f32[8,128] all-reduce(%y), replica_groups=[4,2]<=[8], to_apply=%add"
    )
    (c,) = found(text)
    assert (c.runs, c.within, c.begins) == (5, "body", "z")
