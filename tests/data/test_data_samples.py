"""Samples: the smallest keys of each group, whatever the batches; another seed draws others; texts read afterwards."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from selected_folders import document, write_folder

from lifecycle.data.inspecting.samples import SHOWN_CHARS, Place, Smallest, draw_keys, read_samples
from lifecycle.data.inspecting.selected import id_numbers, read_parts

offers = st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 20), max_size=8)), max_size=12)


@given(offers, st.integers(1, 5))
def test_a_group_has_its_smallest_keys_and_of_equal_ones_the_first(
    batches: list[tuple[str, list[int]]], most: int
) -> None:
    smallest: Smallest[tuple[int, int]] = Smallest(most)
    members: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    for group, keys in batches:
        new = [(key, len(members[group]) + place) for place, key in enumerate(keys)]
        smallest.offer(group, np.array(keys, np.uint64), new.__getitem__)
        members[group] += new
    for group, entries in members.items():
        assert smallest.of(group) == sorted(entries)[:most]
    assert sorted(smallest.all()) == sorted([*smallest.of("a"), *smallest.of("b")])


def test_seeds_draw_in_different_orders_and_each_of_them_evenly() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63, (4000, 2), np.uint64)
    keys = [draw_keys(ids, seed) for seed in range(3)]
    firsts = [set(np.argsort(key)[:400].tolist()) for key in keys]
    assert all(20 < len(one & other) < 70 for one, other in ((firsts[0], firsts[1]), (firsts[1], firsts[2])))
    assert all(150 < sum(first < 2000 for first in chosen) < 250 for chosen in firsts)
    np.testing.assert_array_equal(keys[0], draw_keys(ids, 0))


def test_samples_have_the_beginning_of_their_texts(tmp_path: Path) -> None:
    rows = [
        document("short"),
        document("x" * 2000, ("quality", "long", "2000 letters")),
        document("held", split="heldout"),
    ]
    folder = write_folder(tmp_path / "documents", rows)
    found = read_samples(folder, [Place("removed", 0), Place("kept", 0)])
    long, short = found[Place("removed", 0)], found[Place("kept", 0)]
    assert (long.text, long.size, long.detail) == ("x" * SHOWN_CHARS, 2000, "2000 letters")
    assert (short.text, short.size, short.name, short.detail) == ("short", 5, "s:short.txt", "")
    keys = [draw_keys(id_numbers(part.rows), 0) for part in read_parts(folder, ("id",))]
    assert len({int(key[0]) for key in keys}) == 3
