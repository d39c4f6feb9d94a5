"""Local checkpoints: pieces go to the devices that lack them bit by bit, and a run goes on from whole steps only."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.runlog import METRICS, read_log
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.jobs import StopAt, TinyRun, tiny_job
from lifecycle.training.checkpoints.local_files import ARRAYS, INDEX, LocalPart, write_part
from lifecycle.training.checkpoints.pieces import assembled, copied_pieces, names_by_device, sources
from lifecycle.training.job import CHECKPOINTS
from lifecycle.training.loop import run_job
from tests.checkpoints import Notes

ODD = np.array([-0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3.0, 0.0] * 8, np.float32).reshape(8, 8)
ODD.view(np.uint32)[0, 1] |= 0x1234  # a NaN with a payload, which a sum of floats need not keep


@pytest.mark.parametrize("spec", [P("fsdp", "tensor"), P("tensor"), P()], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_], ids=lambda d: jnp.dtype(d).name)
def test_a_lost_replica_gets_every_bit(spec: P, dtype: Any) -> None:
    mesh = build_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    host = np.where(np.isfinite(ODD), ODD, 1) if dtype == jnp.int32 else ODD
    array = jax.device_put(host.astype(dtype), NamedSharding(mesh, spec))
    pieces = copied_pieces({"x": array})
    names = names_by_device("x", array)
    assert set(pieces) == set(names.values())
    holders = {device: device in set(mesh.devices[1].flat) for device in mesh.devices.flat}  # replica 0 came back empty
    chosen = sources(names, holders)
    assert chosen is not None and all(holders[device] for device in chosen.values())
    read: list[str] = []

    def piece(name: str) -> np.ndarray:
        read.append(name)
        return pieces[name]

    found = assembled("x", array, holders, piece)
    assert found.sharding.is_equivalent_to(array.sharding, 2) and found.dtype == array.dtype
    for left, right in zip(found.addressable_shards, array.addressable_shards, strict=True):
        assert left.device == right.device and np.asarray(left.data).tobytes() == np.asarray(right.data).tobytes()
    assert sorted(read) == sorted(set(names.values()))  # each once, on one device
    nobody = holders | {device: False for device, name in names.items() if name == names[mesh.devices.flat[0]]}
    assert sources(names, nobody) is None


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
    (part,) = local.glob("*/0")
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
