"""The loader: global batch `s` is the same for any number of processes and any start; errors reach the consumer."""

import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest

from lifecycle.data.shards import TokenShards
from lifecycle.training.loader import DataStateError, HostBatch, data_state, make_loader, one_epoch, resume_step
from lifecycle.training.packing import DocumentRows, PackingError, Row

T = 16


class Numbered:
    """Five rows an epoch; a row says its number."""

    num_rows = 5
    fingerprint = "numbered" * 8

    def row(self, index: int) -> Row:
        return {"tokens": np.full(T, index, np.int32), "segment_ids": np.ones(T, np.int32)}


def batches(count: int, **options: Any) -> list[HostBatch]:
    loader = make_loader(Numbered(), global_batch_size=4, **options)
    found = list(islice(loader, count))
    loader.close()
    return found


def numbers(found: list[HostBatch]) -> list[list[int]]:
    return [batch["tokens"][:, 0].tolist() for batch in found]


@pytest.mark.parametrize("held", [[0, 1, 2, 3], [2], [0, 3]])
def test_a_process_gets_its_rows_of_the_same_global_batch(held: list[int]) -> None:
    found = batches(4, held=held)  # three epochs
    assert numbers(found) == [[4 * step + place for place in held] for step in range(4)]
    assert all(array.shape == (len(held), T) for batch in found for array in batch.values())


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_a_start_at_a_step_goes_on_as_if_it_had_arrived_there(prefetch: int) -> None:
    whole = batches(7, prefetch=prefetch)
    assert numbers(batches(3, start_step=4, prefetch=prefetch)) == numbers(whole[4:])


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
    loader = make_loader(Breaking(), global_batch_size=4, prefetch=prefetch)
    assert numbers(list(islice(loader, 3))) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader)
    loader.close()


def test_data_state_survives_json_and_refuses_other_data() -> None:
    source = Numbered()
    state = json.loads(json.dumps(data_state(source, global_batch_size=4, step=9)))
    assert resume_step(state, source, global_batch_size=4) == 9
    with pytest.raises(DataStateError, match="batches of 4 rows, now they have 8"):
        resume_step(state, source, global_batch_size=8)
    other = Numbered()
    other.fingerprint = "another" * 8
    with pytest.raises(DataStateError, match="step 9 was made from other data"):
        resume_step(state, other, global_batch_size=4)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Token shards of 40 documents in two files, as `data.shards` lays them down."""
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] - no stub

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


def from_shards(folder: Path, **options: Any) -> grain.DatasetIterator[HostBatch]:
    return make_loader(DocumentRows(TokenShards(folder), T, seed=5), global_batch_size=4, **options)


def test_token_shards_are_read_the_same_at_any_process_count(shards: Path) -> None:
    one = list(islice(from_shards(shards), 40))
    halves = [list(islice(from_shards(shards, held=[2 * p, 2 * p + 1]), 40)) for p in range(2)]
    for step, batch in enumerate(one):
        for name, array in batch.items():
            assert np.array_equal(array, np.concatenate([half[step][name] for half in halves]))


def test_a_shard_cut_while_it_is_read_is_an_error_not_a_hang(shards: Path) -> None:
    loader = from_shards(shards)
    next(loader)
    for path in shards.glob("*.array_record"):
        os.truncate(path, 100)
    with pytest.raises(PackingError, match=r"0 tokens, the index says .* its shard was damaged"):
        for _ in range(100):
            next(loader)
