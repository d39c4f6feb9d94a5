"""Silent corruption: one flipped bit on one device is found, and the device named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.parallel.mesh import make_mesh, sharding
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.training.config import FaultsConfig
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.hooks.replay import CorruptionError
from lifecycle.training.loop import run_job
from lifecycle.training.replay import make_replay, suspects
from lifecycle.training.run import TrainingRun
from lifecycle.training.state import TrainState


def flipped(array: jax.Array, device: Any) -> jax.Array:
    """The array with the lowest bit of one element flipped, in that device's copy alone."""
    shards = []
    for shard in array.addressable_shards:
        host = np.array(shard.data)
        if shard.device == device:
            host.reshape(-1).view(np.uint32)[-1] ^= 1
        shards.append(jax.device_put(host, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def test_a_flipped_bit_on_one_device_is_found() -> None:
    """Weights sharded over two devices of each of four replicas; the last element is in the second shard."""
    mesh = make_mesh(replica=4, fsdp=2)
    at = TrainState({"w": sharding(mesh, "embed")}, {}, (), sharding(mesh))
    weights = jax.device_put(jnp.linspace(-1, 1, 32), at.trained["w"])
    batch = shard_batch({"tokens": np.arange(64, dtype=np.int32).reshape(8, 8)}, mesh)
    replay = make_replay(lambda parts, rows: parts[0]["w"] * rows["tokens"].sum(), mesh, at, {})
    with jax.transfer_guard("disallow"):
        sums = replay(({"w": weights}, {}), batch)
    assert suspects(np.asarray(sums), mesh) == []
    assert len(np.unique(sums[0, :, 1])) == 8  # each device has rows and a shard of its own
    for device in (mesh.devices.flat[1], mesh.devices.flat[6]):
        sums = replay(({"w": flipped(weights, device)}, {}), batch)
        assert suspects(np.asarray(sums), mesh) == [device]


def test_of_two_replicas_both_devices_are_named() -> None:
    mesh = make_mesh(replica=2, fsdp=2)
    sums = np.arange(4 * 3, dtype=np.uint32).reshape(4, 3)
    replayed = np.stack([sums, np.roll(sums, 2, axis=0)])
    assert suspects(replayed, mesh) == []
    replayed[1, 3, 2] += 1  # one gradient of the first replica's rows, once
    assert suspects(replayed, mesh) == [mesh.devices.flat[1], mesh.devices.flat[3]]
    replayed[0, 3, 2] += 1  # and one of its own rows
    assert suspects(replayed, mesh) == [mesh.devices.flat[1], mesh.devices.flat[3]]


class Flip(Hook):
    def after_step(self, run: TrainingRun) -> None:
        if run.step == 5:
            head = flipped(run.state.trained["head"], jax.devices()[3])
            run.state = replace(run.state, trained={**run.state.trained, "head": head})


@pytest.mark.long
@pytest.mark.parametrize("mesh", [{"replica": 2, "fsdp": 2}, {"replica": 2, "tensor": 2}], ids=str)
def test_a_run_with_a_faulty_device_stops_and_a_sound_one_keeps_its_bits(tmp_path: Path, mesh: dict[str, int]) -> None:
    job = tiny_job(tmp_path / "without", settings := TinyRun(steps=8, mesh=mesh))
    expected = run_job(job, Silent())["params_hash"]
    train = job.train.model_copy(update={"faults": FaultsConfig(replay_every=2)})
    with_replay = replace(tiny_job(tmp_path / "with", settings), train=train)
    assert run_job(with_replay, Silent())["params_hash"] == expected
    faulty = replace(tiny_job(tmp_path / "faulty", settings), train=train)
    with pytest.raises(CorruptionError, match=r"after step 6, .* have different bits: .*3 of process 0"):
        run_job(faulty, Silent(), [Flip()])
