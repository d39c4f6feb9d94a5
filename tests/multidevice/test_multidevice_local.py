"""Local checkpoints: pieces go to the devices that lack them bit by bit, and a run goes on from whole steps only."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.runlog import METRICS, read_log
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.jobs import StopAt, TinyRun, tiny_job
from lifecycle.training.checkpoints.config import LocalCheckpointConfig
from lifecycle.training.checkpoints.local import Found, LocalCheckpoints
from lifecycle.training.checkpoints.local_files import ARRAYS, INDEX, LocalPart, write_part
from lifecycle.training.checkpoints.pieces import assembled, copied_pieces, names_by_device, route, sources
from lifecycle.training.job import CHECKPOINTS
from lifecycle.training.loop import run_job
from tests.checkpoints import Notes

ODD = np.array([-0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3.0, 0.0] * 8, np.float32).reshape(8, 8)
ODD.view(np.uint32)[0, 1] |= 0x1234  # a NaN with a payload, which a sum of floats need not keep


@pytest.mark.parametrize("is_moved", [False, True], ids=["of a replica", "of another device"])
@pytest.mark.parametrize("spec", [P("fsdp", "tensor"), P("tensor"), P()], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_], ids=lambda d: jnp.dtype(d).name)
def test_what_a_host_lost_comes_with_every_bit(spec: P, dtype: Any, is_moved: bool) -> None:
    """Replica 0 came back empty, and the other's processes have their own pieces, or only those of other devices."""
    mesh = build_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    host = np.where(np.isfinite(ODD), ODD, 1) if dtype == jnp.int32 else ODD
    array = jax.device_put(host.astype(dtype), NamedSharding(mesh, spec))
    pieces = copied_pieces({"x": array})
    names = names_by_device("x", array)
    assert set(pieces) == set(names.values())
    holders = {device: not is_moved and device in set(mesh.devices[1].flat) for device in mesh.devices.flat}
    way = route(names, holders, {piece: [0] for piece in pieces} if is_moved else {})
    assert all(holders[device] for device in way.reads) and len(way.rounds) == is_moved
    read: list[str] = []

    def piece(name: str) -> np.ndarray:
        read.append(name)
        return pieces[name]

    found = assembled("x", array, way, piece)
    assert found.sharding.is_equivalent_to(array.sharding, 2) and found.dtype == array.dtype
    for left, right in zip(found.addressable_shards, array.addressable_shards, strict=True):
        assert left.device == right.device and np.asarray(left.data).tobytes() == np.asarray(right.data).tobytes()
    assert sorted(read) == sorted(set(names.values()))  # each once, on one device


@dataclass(frozen=True)
class Host:
    """Stands for a device."""

    process_index: int
    number: int


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_piece_is_read_once_by_a_device_whose_process_has_it(
    processes: int, local: int, copies: int, data: st.DataObject
) -> None:
    """Each piece by one of its own devices if it can; else a device that reads another's sends it to one of its own."""
    devices = [Host(process, number) for process in range(processes * copies) for number in range(local)]
    names = {device: f"piece {place % (processes * local)}" for place, device in enumerate(devices)}
    some = st.sets(st.integers(0, processes * copies - 1), min_size=1)
    held = {piece: data.draw(some) for piece in names.values()}
    holders = {device: device.process_index in held[piece] for device, piece in names.items()}
    own = sources(names, holders)
    way = route(names, holders, {piece: sorted(having) for piece, having in held.items() if piece not in own})
    assert all(holders[device] for device in way.reads)
    moves = [move for moves in way.rounds for move in moves.items()]
    assert all(source.process_index in held[names[target]] for source, target in moves)
    moved, read = [names[target] for _, target in moves], [names[device] for device in way.reads]
    assert sorted(moved + read) == sorted(names.values() if all(holders.values()) else held)
    assert own.keys() == set(read) and len(moved) == len(set(moved))


def test_a_piece_that_is_not_what_was_written_is_missing(tmp_path: Path) -> None:
    pieces = {"a@0-8,0-8": ODD, "b@": np.array(7, np.int32)}
    write_part(tmp_path / "3", pieces, {"step": 3})
    part = LocalPart(tmp_path / "3")
    assert part.facts == {"step": 3}
    for name, piece in pieces.items():
        assert part.has(name, piece.shape, piece.dtype) and part.read(name).tobytes() == piece.tobytes()
    assert not part.has("a@0-8,0-8", (8, 8), jnp.bfloat16) and not part.has("a@0-4,0-8", (4, 8), jnp.float32)
    content = bytearray((tmp_path / "3" / ARRAYS).read_bytes())
    content[5] ^= 1
    (tmp_path / "3" / ARRAYS).write_bytes(content)
    assert not part.has("a@0-8,0-8", (8, 8), jnp.float32) and part.has("b@", (), jnp.int32)
    (tmp_path / "3" / ARRAYS).write_bytes(content[:8])
    assert not part.has("b@", (), jnp.int32)
    (tmp_path / "3" / ARRAYS).unlink()
    assert not part.has("b@", (), jnp.int32)
    index = tmp_path / "3" / INDEX
    index.write_text(index.read_text().replace("step", "stop"))
    assert LocalPart(tmp_path / "3").facts is None


RUN = TinyRun(steps=8, checkpoint_every=5, mesh={"replica": 2, "fsdp": 2})


def job_in(folder: Path, local: Path) -> Any:
    return tiny_job(folder, replace(RUN, checkpoint={"local": {"folder": str(local), "every": 2}}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_job(tiny_job(tmp_path_factory.mktemp("whole"), RUN), Notes())["params_hash"]


def flip(step: Path) -> None:
    content = bytearray((step / ARRAYS).read_bytes())
    content[-1] ^= 1
    (step / ARRAYS).write_bytes(content)


def keep(step: Path) -> None:
    assert step.is_dir()


@pytest.mark.long
@pytest.mark.parametrize(("damage", "resumed"), [(keep, 6), (flip, 5), (shutil.rmtree, 5)], ids=["", "flip", "delete"])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(
    whole: str, tmp_path: Path, damage: Callable[[Path], None], resumed: int
) -> None:
    """Of steps 2, 4 and 6, locally, and 5."""
    out, local = tmp_path / "out", tmp_path / "local"
    with pytest.raises(KeyboardInterrupt):
        run_job(job_in(out, local), StopAt(8))
    (part,) = local.glob("*/*/0")
    assert sorted(path.name for path in part.iterdir()) == ["4", "6"]
    damage(part / "6")
    notes = Notes()
    assert run_job(job_in(out, local), notes)["params_hash"] == whole
    begun = [record["step"] for record in read_log(out / METRICS) if "compile_s" in record]
    is_told = any("local checkpoint of step 6" in text for text in notes.texts)
    assert begun[-1] == resumed and is_told == (damage is not shutil.rmtree)
    assert not list(local.iterdir())  # the last step is saved durably
    stalls = [record for record in read_log(out / METRICS) if "local_save_stall_s" in record]
    assert [record["step"] for record in stalls] == [2, 4, 6, 8]


def test_parts_of_two_sessions_are_not_joined_and_the_newer_session_counts(tmp_path: Path) -> None:
    """As when a host was away while the others trained a step again."""
    mesh, notes = build_mesh(MeshConfig(fsdp=2)), Notes()
    sharding = NamedSharding(mesh, P("fsdp"))
    state = {"x": jax.device_put(jnp.arange(4.0), sharding), "y": jax.device_put(jnp.arange(6.0), sharding)}
    settings = LocalCheckpointConfig(folder=str(tmp_path / "local"))

    def session(step: int, value: float) -> Path:
        checkpoints = LocalCheckpoints(settings, tmp_path / "out", "id", notes)
        checkpoints.save(step, jax.tree.map(lambda x: x + value, state), {"value": value})
        checkpoints.close()
        return max((tmp_path / "local").glob(f"*/*/0/{step}"), key=lambda path: int(path.parts[-3]))

    def found() -> Found | None:
        return LocalCheckpoints(settings, tmp_path / "out", "id", notes).restore(state, newer_than=0)

    first, second = session(6, 1.0), session(6, 2.0)
    assert first.parts[-3] < second.parts[-3]  # also within a minute
    newest = found()
    assert newest is not None and newest.data_state == {"value": 2.0}
    np.testing.assert_array_equal(newest.state["x"], jnp.arange(4.0) + 2)
    flip(second)  # the last piece of y
    older = found()
    assert older is not None and older.data_state == {"value": 1.0}
    content = bytearray((first / ARRAYS).read_bytes())
    content[0] ^= 1  # the first piece of x
    (first / ARRAYS).write_bytes(content)
    assert found() is None
    assert "step 6 is not whole: of its 4 pieces 1 are on no host, the first ['y']@3-6; processes [0] need" in "".join(
        notes.texts
    )
    assert not list((tmp_path / "local").glob("*/*/0/*"))  # step 6 comes again


@pytest.mark.long
def test_a_run_that_starts_over_does_not_take_up_the_old_ones_state(tmp_path: Path) -> None:
    out, local = tmp_path / "out", tmp_path / "local"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_job(job_in(out, local), StopAt(3))
        assert len(list(local.iterdir())) == 1
        steps = [record["step"] for record in read_log(out / METRICS) if "loss" in record]
        assert steps == [1, 2, 3]
        shutil.rmtree(out / CHECKPOINTS)
