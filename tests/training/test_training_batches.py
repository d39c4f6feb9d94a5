"""Batches: global batch `s` is the same for any number of processes and any start; errors reach the consumer."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.data.shards import TokenShards
from lifecycle.testing.tiny_rows import mixed_rows
from lifecycle.training.batches import DataStateError, HostBatch, RowBatches, one_epoch
from lifecycle.training.document_rows import DocumentRows
from lifecycle.training.packing import FixedRows, PackingError, Row

T = 16


class Numbered(FixedRows):
    """Five rows an epoch; a row says its number."""

    num_rows = 5
    fingerprint = "numbered" * 8

    def row(self, index: int) -> Row:
        return {"tokens": np.full(T, index, np.int32), "segment_ids": np.ones(T, np.int32)}

    def contents(self, index: int) -> dict[str, Any]:
        return {"number": index}


def batches(steps: range, held: Sequence[int] = range(4), **options: Any) -> list[HostBatch]:
    source = RowBatches(Numbered(), 4, held, **options)
    made = [source.batch(step) for step in steps]
    source.close()
    return made


def numbers(found: list[HostBatch]) -> list[list[int]]:
    return [batch["tokens"][:, 0].tolist() for batch in found]


@pytest.mark.parametrize("held", [[0, 1, 2, 3], [2], [0, 3]])
def test_a_process_gets_its_rows_of_the_same_global_batch(held: list[int]) -> None:
    found = batches(range(4), held)  # three epochs
    assert numbers(found) == [[4 * step + place for place in held] for step in range(4)]
    assert all(array.shape == (len(held), T) for batch in found for array in batch.values())


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=4), st.integers(1, 4))
def test_batches_of_a_changed_size_go_on_at_the_next_row(parts: list[tuple[int, int]], last: int) -> None:
    """Each part has a batch size and steps; then the last one is resumed from its own state."""
    seen: list[int] = []
    state: dict[str, Any] = RowBatches(Numbered(), 1, [0]).state(0)
    for size, steps in [*parts, (last, 1), (last, 2)]:
        source = RowBatches(Numbered(), size, range(size), prefetch=0)
        first = source.continue_from(json.loads(json.dumps(state)))
        for step in range(first, first + steps):
            seen += source.batch(step)["tokens"][:, 0].tolist()
        state = source.state(first + steps)
    assert seen == list(range(len(seen)))


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_a_start_at_a_step_goes_on_as_if_it_had_arrived_there(prefetch: int) -> None:
    whole = batches(range(7), prefetch=prefetch)
    assert numbers(batches(range(4, 7), prefetch=prefetch)) == numbers(whole[4:])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.sampled_from([0, 3]))
def test_a_step_has_its_batch_in_any_order(steps: list[int], prefetch: int) -> None:
    source = RowBatches(Numbered(), 4, [1], prefetch=prefetch)
    assert [source.batch(step)["tokens"][0, 0] for step in steps] == [4 * step + 1 for step in steps]
    source.close()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_stops_on_any_numbers_of_processes_give_the_same_batches(data: st.DataObject) -> None:
    """Saved by one number of processes and resumed by another, again and again, from any step of a long run."""
    rows, size, step = mixed_rows(T), 8, data.draw(st.integers(0, 10**6))
    state = RowBatches(rows, size, range(size)).state(step)
    for _ in range(3):
        count = data.draw(st.sampled_from([1, 2, 4, 8]))
        held = [range(i * size // count, (i + 1) * size // count) for i in range(count)]
        hosts = [RowBatches(rows, size, own, prefetch=data.draw(st.sampled_from([0, 2]))) for own in held]
        assert [host.restore(json.loads(json.dumps(state))) for host in hosts] == [step] * count
        for _ in range(data.draw(st.integers(1, 3))):
            parts = [host.batch(step) for host in hosts]
            expected = [rows.row(step * size + row) for row in range(size)]
            for name in expected[0]:
                joined = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(joined, np.stack([row[name] for row in expected]))
            step += 1
        state = hosts[-1].state(step)
        for host in hosts:
            host.close()


def test_a_step_far_away_is_reached_by_arithmetic() -> None:
    """No row before it is made."""
    made: list[int] = []

    class Counted(Numbered):
        def row(self, index: int) -> Row:
            made.append(index)
            return super().row(index)

    RowBatches(Counted(), 4, range(4), prefetch=0).batch(10**6)
    assert made == list(range(4 * 10**6, 4 * 10**6 + 4))


def test_one_epoch_has_each_row_once_and_padding_at_the_end() -> None:
    found = list(one_epoch(Numbered(), global_batch_size=4))
    rows = [row for batch in found for row in zip(*batch.values(), strict=True)]
    assert Counter(int(tokens[0]) for tokens, segments in rows if segments.any()) == Counter(range(5))
    assert len(rows) == 8 and sum(not segments.any() for _, segments in rows) == 3


class Breaking(Numbered):
    def row(self, index: int) -> Row:
        if index >= 12:
            raise OSError("the disk is gone")
        return super().row(index)


@pytest.mark.parametrize("prefetch", [0, 4])
def test_an_error_while_a_batch_is_made_reaches_the_consumer(prefetch: int) -> None:
    source = RowBatches(Breaking(), 4, range(4), prefetch=prefetch)
    assert numbers([source.batch(step) for step in range(3)]) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(OSError, match="the disk is gone"):
        source.batch(3)
    source.close()


def test_data_state_survives_json_and_refuses_other_data() -> None:
    state = json.loads(json.dumps(RowBatches(Numbered(), 4, [0, 1, 2, 3]).state(9)))
    assert RowBatches(Numbered(), 4, [2]).restore(state) == 9  # on any number of processes
    with pytest.raises(DataStateError, match="batches of 4 rows, now they have 8"):
        RowBatches(Numbered(), 8, [0]).restore(state)
    other = Numbered()
    other.fingerprint = "another" * 8
    with pytest.raises(DataStateError, match="step 9 was made from other data"):
        RowBatches(other, 4, [0]).restore(state)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Token shards of 40 documents in two files, as `data.shards` lays them down."""
    from array_record.python import array_record_module

    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 500, size).astype("<u2") for size in rng.integers(2, 60, 40)]
    entries = []
    for number in range(2):
        path = tmp_path / f"train-{number:05d}.array_record"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for text in texts[20 * number : 20 * number + 20]:
            writer.write(text.tobytes())
        writer.close()
        entries.append({"file": path.name, "documents": 20, "bytes": path.stat().st_size})
    lengths = np.array([len(text) for text in texts], "<i4")
    np.save(tmp_path / "train.lengths.npy", lengths)
    train = {"documents": 40, "tokens": int(lengths.sum()), "text_bytes": 0, "shards": entries}
    index = {"dtype": "<u2", "vocab_size": 500, "tokenizer_fingerprint": "f" * 64, "bos_id": 1, "eos_id": 2}
    (tmp_path / "index.json").write_text(json.dumps(index | {"splits": {"train": train}}))
    return tmp_path


def from_shards(folder: Path, held: Sequence[int] = range(4)) -> RowBatches:
    return RowBatches(DocumentRows(TokenShards(folder), T, seed=5), 4, held)


def test_token_shards_are_read_the_same_at_any_process_count(shards: Path) -> None:
    one, *halves = [from_shards(shards, held) for held in (range(4), [0, 1], [2, 3])]
    for step in range(40):
        parts = [half.batch(step) for half in halves]
        for name, array in one.batch(step).items():
            assert np.array_equal(array, np.concatenate([part[name] for part in parts]))
    for source in (one, *halves):
        source.close()


def test_a_shard_cut_while_it_is_read_is_an_error_not_a_hang(shards: Path) -> None:
    source = from_shards(shards)
    source.batch(0)
    for path in shards.glob("*.array_record"):
        os.truncate(path, 100)
    with pytest.raises(PackingError, match=r"0 tokens, the index says .* its shard was damaged"):
        for step in range(1, 100):
            source.batch(step)
