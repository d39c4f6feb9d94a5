"""Checkpoints of hosts that share no folder: parts joined without their values, and a store in which only whole
checkpoints count. Real processes: tests/multidevice/test_hosts_apart.py."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from obstore.store import MemoryStore

from lifecycle.core.artifact import ArtifactError
from lifecycle.core.files import FILES
from lifecycle.core.lease import LeaseError
from lifecycle.core.store import Store, StoreError
from lifecycle.testing.notes import Notes
from lifecycle.training.checkpoints.agreement import AgreedError
from lifecycle.training.checkpoints.arrays import Shapes
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.copies import Copies
from lifecycle.training.checkpoints.destination import Destination
from lifecycle.training.checkpoints.home import RUN_ID
from lifecycle.training.checkpoints.integrity import CheckpointError, damage, steps_in, write_files
from lifecycle.training.checkpoints.mirror import bring_logs
from lifecycle.training.checkpoints.parts import PART, VALUES, is_value, split
from lifecycle.training.checkpoints.retention import MEASURED
from lifecycle.training.checkpoints.stored import DAMAGED, STAGING, fetch_kept
from tests.checkpoints import assert_bit_equal

CONTEXT = ts.Context()


def ocdbt(folder: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}


def array(folder: Path, process: int, name: str, width: int) -> ts.TensorStore:
    """An array of 64 x width in chunks of 32 x width. Process 0 writes what it is."""
    metadata = {"shape": [64, width], "chunks": [32, width], "dtype": "<f4", "compressor": None}
    spec = {"driver": "zarr", "kvstore": ocdbt(folder) | {"path": f"{name}/"}, "metadata": metadata}
    is_first = process == 0
    return ts.open(spec, open=True, create=is_first, assume_metadata=not is_first, context=CONTEXT).result()


def join(item: Path, nodes: dict[str, Any] | None = None) -> None:
    """What Orbax does in process 0, in a context of its own."""
    context = ts.Context()
    to = ts.KvStore.open(ocdbt(item) | {"config": nodes or {}}, context=context).result()
    for process in range(2):
        part = ts.KvStore.open(ocdbt(item / f"{PART}{process}"), context=context).result()
        part.experimental_copy_range_to(to).result()


def test_parts_are_joined_by_their_trees_alone(tmp_path: Path) -> None:
    """As process 0 joins them, without the other's values; with these, the array is there, bit by bit. Small values
    are with the trees."""
    whole = np.random.default_rng(0).random((64, 256), np.float32)
    item, elsewhere = tmp_path / "params", tmp_path / "elsewhere"
    for process in range(2):
        half = slice(32 * process, 32 * process + 32)
        for name, width in (("w", 256), ("scale", 8)):
            array(item / f"{PART}{process}", process, name, width)[half].write(whole[half, :width]).result()
    split(item / f"{PART}1")
    (item / f"{PART}1" / VALUES).rename(elsewhere)
    kept = [path.stat().st_size for path in (item / f"{PART}1").rglob("*") if path.is_file()]
    assert sum(kept) < 32 * 8 * 4 + 1000
    join(item)
    (item / f"{PART}1" / "manifest.ocdbt").unlink()
    joined, scale = (
        ts.open({"driver": "zarr", "kvstore": ocdbt(item) | {"path": f"{name}/"}}, open=True).result()
        for name in ("w", "scale")
    )
    np.testing.assert_array_equal(joined[:32].read().result(), whole[:32])
    np.testing.assert_array_equal(scale.read().result(), whole[:, :8])
    with pytest.raises(ValueError, match="Not enough data"):
        joined[32:].read().result()
    elsewhere.rename(item / f"{PART}1" / VALUES)
    np.testing.assert_array_equal(joined.read().result(), whole)


NAMES = [f"blocks.{layer}.w" for layer in range(12)]


def published(folder: Path, store: Store, value: float, node_bytes: int = 8 << 20) -> None:
    """A checkpoint `1` of two processes in a store: the first's half of each array is of `value`, the second's of one
    more."""
    item = folder / "1" / "params"
    for process in range(2):
        half = slice(32 * process, 32 * process + 32)
        for name in NAMES:
            part = array(item / f"{PART}{process}", process, name, 256)
            part[half].write(np.full((32, 256), value + process, np.float32)).result()
        split(item / f"{PART}{process}")
    join(item, {"max_decoded_node_bytes": node_bytes})
    write_files(item.parent)
    for path in item.parent.rglob("*"):
        if path.is_file():
            store.upload(path, str(path.relative_to(folder)))


@pytest.fixture
def of_the_second_process(monkeypatch: pytest.MonkeyPatch) -> Shapes:
    """An array of which the calling process holds the second half, and one that no checkpoint has."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))
    leaf = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    index = leaf.sharding.devices_indices_map(leaf.shape)[jax.devices()[1]]
    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", lambda *_: {jax.devices()[1]: index})
    return {NAMES[3]: leaf, "blocks.0.missing": leaf}


class Noting(Store):
    """Notes what is downloaded."""

    fetched: ClassVar[list[str]] = []

    def download(self, name: str, file: Path) -> str:
        self.fetched.append(f"{self.url.rpartition('/')[2]}/{name}")
        return super().download(name, file)


@pytest.mark.parametrize("node_bytes", [8 << 20, 400])  # one node, or a tree of several levels
def test_only_the_files_with_a_processs_shards_are_fetched(
    tmp_path: Path, of_the_second_process: Shapes, node_bytes: int
) -> None:
    """And nothing twice; what was not fetched is not read as something else."""
    store = Noting("mem://run", MemoryStore())
    store.fetched.clear()
    published(tmp_path, store, 7, node_bytes)
    copies = Copies(store, tmp_path / "host")
    for _ in range(2):
        copies.bring("1", {"params": of_the_second_process})
    large = [name for name in store.list() if VALUES in name]
    assert {name for name in large if f"{PART}1" in name} >= {name for name in store.fetched if VALUES in name} != set()
    assert {name for name in store.list() if VALUES not in name} - {f"1/{FILES}"} < set(store.fetched)
    assert len(set(store.fetched)) == len(store.fetched)
    here = ts.open(
        {"driver": "zarr", "kvstore": ocdbt(copies.path("1") / "params") | {"path": f"{NAMES[3]}/"}}, open=True
    ).result()
    np.testing.assert_array_equal(here[32:].read().result(), np.full((32, 256), 8))
    with pytest.raises(ValueError, match="Not enough data"):
        here[:32].read().result()


def test_a_copy_is_of_one_save_and_verified(tmp_path: Path, of_the_second_process: Shapes) -> None:
    store, wanted = Store("mem://run", MemoryStore()), {"params": of_the_second_process}
    copies = Copies(store, tmp_path / "host")
    for value in (7, 9):
        published(tmp_path / str(value), store, value)
        copies.bring("1", wanted)
        spec = {"driver": "zarr", "kvstore": ocdbt(copies.path("1") / "params") | {"path": f"{NAMES[3]}/"}}
        here = ts.open(spec, open=True).result()
        np.testing.assert_array_equal(here[32:].read().result(), np.full((32, 256), value + 1))
        assert {str(path.relative_to(copies.path("1"))) for path in copies.path("1").rglob("*") if path.is_file()} < {
            str(path.relative_to(tmp_path / str(value) / "1")) for path in (tmp_path / str(value)).rglob("*")
        }
    (values,) = [path for path in copies.path("1").rglob("*") if is_value(str(path)) and path.is_file()]
    values.write_bytes(b"?" * values.stat().st_size)  # of this disk: fetched again
    copies.bring("1", wanted)
    assert set(values.read_bytes()) != set(b"?")
    copies.clear()
    name = values.relative_to(copies.path("1"))
    store.write(f"1/{name}", b"?")
    with pytest.raises(ArtifactError, match=f"{name}: 1 bytes of"):
        copies.bring("1", wanted)


def state(value: float) -> dict[str, Any]:
    return {"params": {"w": jnp.full(4, value)}, "opt_state": {"m": jnp.full(4, -value)}}


class Away(Store):
    """A store that may be away, and whose run may be another process's."""

    is_away = is_lost = False

    def upload(self, file: Path, name: str) -> None:
        if Away.is_away:
            raise StoreError(f"{self.url}: no answer")
        super().upload(file, name)

    def require(self) -> None:
        if Away.is_lost:
            raise LeaseError("another process owns it")


class Machine:
    """A machine on which the run's stage trains: its disk, and its checkpoints in the store."""

    def __init__(self, folder: Path, store: Away, told: Notes | None = None, **settings: Any) -> None:
        self.local = folder / "stage" / "checkpoints"
        self.local.mkdir(parents=True)
        self.to = Destination(store, store.require)
        chosen = CheckpointConfig.model_validate({"every": 1, "keep": 2} | settings)
        self.checkpoints = Checkpointer(self.local, chosen, told, self.to)

    def save(self, *steps: int, content: float = 0, loss: float = 0) -> None:
        for step in steps:
            (self.local.parent / "metrics.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(step)))
            meta = {MEASURED: {"heldout_loss": loss}}
            self.checkpoints.save(step, state(content or step), {"step": step}, meta)
            self.checkpoints.wait()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Away:
    for name in ("is_away", "is_lost"):
        monkeypatch.setattr(Away, name, False)
    return Away("mem://run", MemoryStore())


def kept(store: Store) -> set[str]:
    return {name.split("/")[1] for name in store.list("checkpoints")}


def test_another_machine_goes_on_from_what_the_store_has(tmp_path: Path, store: Away) -> None:
    one = Machine(tmp_path / "one", store)
    one.checkpoints.save_frozen({"fixed": jnp.arange(3.0)})
    one.save(1, 2, 3)
    assert kept(store) == {"2", "3", "frozen"} and one.checkpoints.latest_step() == 3
    assert not steps_in(one.local) and not (one.local / STAGING / "0").exists()  # nothing stays on its disk
    two = Machine(tmp_path / "two", store)
    restored, data, _ = two.checkpoints.restore(state(0))
    assert_bit_equal(restored, state(3))
    assert data == {"step": 3} and len((two.local.parent / "metrics.jsonl").read_text().splitlines()) == 3
    np.testing.assert_array_equal(two.checkpoints.restore_frozen({"fixed": jnp.zeros(3)})["fixed"], [0, 1, 2])
    two.checkpoints.drop_after(2)
    two.save(3, content=9)
    fetch_kept(two.to, two.local, Notes())
    assert steps_in(two.local) == [2, 3] and [damage(two.local / name) for name in ("2", "3", "frozen")] == [None] * 3
    assert_bit_equal(Machine(tmp_path / "three", store).checkpoints.restore(state(0))[0], state(9))


def test_what_is_not_whole_does_not_count_and_does_not_stay(tmp_path: Path, store: Away) -> None:
    """What a killed save and a job that lost the run leave; a damaged checkpoint is named, passed over, and stays."""
    one = Machine(tmp_path / "one", store)
    one.save(1, 2)
    store.write("checkpoints/5/params/ocdbt.process_1/values/d/abc", b"values")
    store.write("checkpoints/parts/0badcafe/1/params/manifest.ocdbt", b"tree")
    values = next(name for name in store.list("checkpoints/2/params") if "/d/" in name)
    store.write(values, b"?" * store.list("checkpoints/2/params")[values].bytes)
    two = Machine(tmp_path / "two", store, told := Notes())
    assert two.checkpoints.latest_step() == 2
    _, data, _ = two.checkpoints.restore(state(0))
    assert data == {"step": 1} and two.checkpoints.latest_step() == 1
    assert [note for note in told.notes if "step 2 cannot be used" in note and values.rpartition("/")[2] in note]
    assert f"checkpoints/2/{DAMAGED}" in store.list()
    two.save(3)
    assert kept(store) == {"1", "2", "3"} and values in store.list()
    two.save(4, 5)
    assert kept(store) == {"2", "4", "5"}
    for step in (4, 5):
        store.write(f"checkpoints/{step}/{FILES}", b"{cut")
    with pytest.raises(CheckpointError, match=r"every checkpoint is damaged \(step 5: .*not a list of files.*step 4"):
        Machine(tmp_path / "three", store).checkpoints.restore(state(0))


def test_a_run_keeps_its_identity_on_another_machine_until_it_starts_over(tmp_path: Path, store: Away) -> None:
    one = Machine(tmp_path / "one", store, keep=1)
    run = one.checkpoints.run_id()
    assert Machine(tmp_path / "two", store).checkpoints.run_id() == run  # also before its first checkpoint
    one.save(1, 2)
    assert kept(store) == {"2", RUN_ID}
    three = Machine(tmp_path / "three", store)
    assert three.checkpoints.run_id() == run
    store.delete(store.list())
    assert Machine(tmp_path / "four", store).checkpoints.run_id() != run
    Away.is_lost = True
    store.delete(store.list())
    with pytest.raises(AgreedError, match="another process owns it"):
        three.checkpoints.run_id()


def test_a_save_fails_while_the_store_is_away_or_the_run_is_lost(tmp_path: Path, store: Away) -> None:
    one = Machine(tmp_path / "one", store, best="heldout_loss", keep=1)
    one.save(1, loss=1.0)
    Away.is_away = True
    with pytest.raises(CheckpointError, match=r"step 2 could not be written \(mem://run.*no answer"):
        one.save(2)
    assert one.checkpoints.latest_step() == 1
    Away.is_away = False
    one.save(3, loss=2.0)
    assert kept(store) == {"1", "3"}  # the best, and the last
    Away.is_lost = True
    held = store.list()
    with pytest.raises(CheckpointError, match="another process owns it"):
        one.save(4)
    assert store.list() == held
    Away.is_lost = False
    two = Machine(tmp_path / "two", store, best="heldout_loss", keep=1)
    two.save(5, loss=3.0)
    assert kept(store) == {"1", "5"}  # what was measured is known on the other machine


def test_logs_come_unless_there_is_more_here(tmp_path: Path) -> None:
    store = Store("mem://run", MemoryStore())
    for name, here, there, expected in (
        ("times.jsonl", "1\n2\n3\n", "1\n2\n", "1\n2\n3\n"),
        ("metrics.jsonl", "1\n", "1\n2\n", "1\n2\n"),
        ("sessions.jsonl", "other\n", "1\n", "1\n"),
        ("costs.jsonl", None, "1\n", "1\n"),
    ):
        store.write(name, there.encode())
        if here is not None:
            (tmp_path / name).write_text(here)
        bring_logs(store, tmp_path)
        assert (tmp_path / name).read_text() == expected
    store.write("checkpoints/1/deep.jsonl", json.dumps({}).encode())
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    bring_logs(store, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
