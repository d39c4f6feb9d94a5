"""Checkpoints: what is restored is bit by bit what was saved, on any mesh, in whole or in part."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.waiting import LIMIT_S
from lifecycle.training.checkpoints import checkpointer
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.checkpoints.integrity import CheckpointError, steps_in
from lifecycle.training.checkpoints.retention import MEASURED
from lifecycle.training.checkpoints.weights import load_params, read_params
from lifecycle.weights.names import unstack
from tests.checkpoints import LAYERS, assert_bit_equal, fresh_state, save_steps


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpointer]:
    opened = Checkpointer(tmp_path / "checkpoints", CheckpointConfig(every=2, keep=2))
    yield opened
    opened.close()


def test_round_trip_is_bit_equal(checkpoints: Checkpointer) -> None:
    assert checkpoints.latest_step() is None
    state = fresh_state()
    checkpoints.save(7, state, {"step": 7, "source": "abc"}, {"model": {"d_model": 8}})
    checkpoints.wait()
    restored, data, meta = checkpoints.restore(fresh_state(seed=1))
    assert_bit_equal(restored, state)
    assert (data, meta) == ({"step": 7, "source": "abc"}, {"model": {"d_model": 8}})


def test_the_state_may_be_donated_as_soon_as_save_returns(checkpoints: Checkpointer) -> None:
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 + 1, state), donate_argnums=0)
    state = fresh_state(width=256)
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    checkpoints.save(2, state, {}, {})
    state = overwrite(state)
    checkpoints.wait()
    restored, _, _ = checkpoints.restore(jax.block_until_ready(state))
    assert_bit_equal(restored, expected)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, Orbax does not begin."""
    opened, begin = threading.Event(), ocp.AsyncCheckpointer.save

    def save(self: ocp.AsyncCheckpointer, *args: Any, **kwargs: Any) -> None:
        assert opened.wait(LIMIT_S)
        begin(self, *args, **kwargs)

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", save)
    return opened


def test_training_goes_on_before_orbax_has_begun(checkpoints: Checkpointer, gate: threading.Event) -> None:
    state = fresh_state()
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    checkpoints.save(2, state, {}, {})
    assert not checkpoints.settle()
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    gate.set()
    checkpoints.wait()
    assert_bit_equal(checkpoints.restore(fresh_state(seed=1))[0], expected)


def test_without_room_for_copies_training_waits_until_they_are_on_the_host(
    checkpoints: Checkpointer, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer, "has_room", lambda state: False)
    saving = threading.Thread(target=checkpoints.save, args=(2, fresh_state(), {}, {}))
    saving.start()
    saving.join(timeout=0.5)
    assert saving.is_alive()
    gate.set()
    saving.join(timeout=LIMIT_S)
    assert not saving.is_alive()
    checkpoints.wait()
    assert checkpoints.latest_step() == 2


def test_a_copy_is_compiled_before_the_first_save_and_not_made(checkpoints: Checkpointer) -> None:
    """What the devices have held at most decides whether there is room for copies, so there is none before."""
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    state = fresh_state(width=24)
    before, bytes_before = len(compiled), sum(array.nbytes for array in jax.live_arrays())
    checkpoints.prepare(state)
    assert [event for event in compiled[before:] if "backend_compile" in event]
    assert sum(array.nbytes for array in jax.live_arrays()) <= bytes_before
    before = len(compiled)
    checkpoints.save(2, state, {}, {})
    assert not [event for event in compiled[before:] if "backend_compile" in event]
    checkpoints.wait()


def test_names_on_disk_are_per_layer(checkpoints: Checkpointer) -> None:
    checkpoints.save(2, fresh_state(), {}, {})
    checkpoints.wait()
    with ocp.StandardCheckpointer() as reader:
        saved = {
            item: reader.metadata(checkpoints.folder / "2" / item).item_metadata for item in ("params", "opt_state")
        }
    layers = range(LAYERS)
    names = {"embed", *(f"blocks.{n}.attention.q" for n in layers), *(f"blocks.{n}.norm.scale" for n in layers)}
    assert set(saved["params"]) == names
    assert set(saved["opt_state"]) == {
        *(f"opt_state.0.{moment}.{name}" for moment in ("mu", "nu") for name in names), "opt_state.0.count", "step",
    }  # fmt: skip


def test_the_last_stay(checkpoints: Checkpointer) -> None:
    for step in (2, 4, 6, 8):
        checkpoints.save(step, fresh_state(step), {"step": step}, {})
    checkpoints.wait()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["6", "8"]
    restored, data, _ = checkpoints.restore(fresh_state(), step=6)
    assert data == {"step": 6}
    assert_bit_equal(restored, fresh_state(6))


def test_the_best_stays_also_through_a_restart(tmp_path: Path) -> None:
    settings = CheckpointConfig(every=1, keep=1, best="heldout_loss")
    for steps in ({1: 3.0, 2: 1.0}, {3: 2.0, 4: 1.5}):
        checkpoints = Checkpointer(tmp_path, settings)
        for step, loss in steps.items():
            state = {"params": {"w": jnp.zeros(2)}, "opt_state": {"w": jnp.zeros(2)}}
            checkpoints.save(step, state, {}, {MEASURED: {"heldout_loss": loss}})
        checkpoints.close()
    assert steps_in(tmp_path) == [2, 4]


def test_a_run_goes_back_only_to_what_was_due_by_steps(tmp_path: Path) -> None:
    """Other checkpoints, of a stop or by time, are those of some runs only."""
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=4, keep=9))
    for step in (2, 4, 6):
        checkpoints.save(step, fresh_state(step), {}, {})
    assert [checkpoints.last_due(step) for step in (3, 4, 5, 8)] == [0, 0, 4, 4]
    checkpoints.close()


def test_saving_a_step_again_changes_nothing(checkpoints: Checkpointer) -> None:
    checkpoints.save(2, fresh_state(2), {}, {})
    checkpoints.save(2, fresh_state(3), {}, {})
    checkpoints.wait()
    assert_bit_equal(checkpoints.restore(fresh_state())[0], fresh_state(2))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, keep=9))
    with pytest.raises(
        CheckpointError, match=r"params blocks\.0\.attention\.q is \(8, 8\) float32.*\(16, 16\) float32"
    ):
        checkpoints.restore(fresh_state(width=16))
    deeper = fresh_state()
    deeper["params"]["blocks"] = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), deeper["params"]["blocks"])
    with pytest.raises(CheckpointError, match=r"params blocks\.3\.attention\.q is absent"):
        checkpoints.restore(deeper)
    other = fresh_state() | {"opt_state": optax.sgd(1e-3, momentum=0.9).init(fresh_state()["params"])}
    with pytest.raises(CheckpointError, match="opt_state"):
        checkpoints.restore(other)
    checkpoints.close()


def test_load_params_without_a_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not there"):
        with pytest.raises(CheckpointError, match="no checkpoint here"):
            load_params(folder, fresh_state()["params"])


def test_arrays_are_read_one_by_one(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    params = fresh_state()["params"]
    for step, read in ((2, read_params(tmp_path, params)), (1, read_params(tmp_path, params, step=1))):
        saved = unstack(fresh_state(step)["params"])
        assert_bit_equal({name: read(name, None) for name in saved}, saved)


@pytest.mark.parametrize("num_shards", [1, 4])
def test_parts_are_read_in_any_order(tmp_path: Path, num_shards: int) -> None:
    """Of an array that lies on the disk as one chunk, and of one that was cut over its first dimension."""
    experts = {name: jax.random.normal(jax.random.key(n), (8, 4, 6)) for n, name in enumerate(("gate", "up"))}
    cut = NamedSharding(build_mesh(MeshConfig(fsdp=num_shards)), P("fsdp"))
    checkpoints = Checkpointer(tmp_path, CheckpointConfig(every=1, keep=1))
    experts = jax.device_put(experts, cut)
    checkpoints.save(1, {"params": experts, "opt_state": {"mu": experts}}, {}, {})
    checkpoints.close()
    read = read_params(tmp_path, experts)
    for expert in (0, 1, 7, 3, 2, 2):
        for name in ("gate", "up", "gate"):
            assert np.array_equal(read(name, expert), experts[name][expert])
        assert np.array_equal(read("up", None), experts["up"])


ON_ANOTHER_MESH = """
import sys
from pathlib import Path

import jax
import numpy as np

from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import abstract_params, logical_axes
from lifecycle.training.checkpoints.checkpointer import Checkpointer
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.checkpoints.config import CheckpointConfig

CONFIG = ModelConfig(vocab_size=32, d_model=8, d_ff=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4)


def state_on(seed, **sizes):
    shardings = tree_shardings(build_mesh(MeshConfig(**sizes)), logical_axes(CONFIG))
    random = np.random.default_rng(seed)
    host = jax.tree.map(lambda x: random.random(x.shape, np.float32), abstract_params(CONFIG))
    placed = {"params": shardings, "opt_state": {"mu": shardings}}
    return jax.device_put({"params": host, "opt_state": {"mu": host}}, placed)


def equal(left, right):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), left, right))


def alike(left, right):
    return jax.tree.all(jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), left, right))


assert jax.device_count() == 8
folder = Path(sys.argv[1])
saved = state_on(0, fsdp=2, tensor=2, replica=2)
first = Checkpointer(folder, CheckpointConfig(every=1, keep=1))
first.save(1, saved, {}, {})
layer = first._copied(saved)["params.blocks.0.attention.q"]
assert tuple(layer.sharding.spec) == (("fsdp", "expert", "context"), "tensor")
first.close()
for sizes in ({}, {"fsdp": 4, "tensor": 2}):
    like = state_on(1, **sizes)
    checkpoints = Checkpointer(folder, CheckpointConfig(every=1, keep=1))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    found, _, _ = checkpoints.restore(abstract)
    checkpoints.close()
    assert equal(found, saved) and not equal(found, like)
    assert alike(found, like)
    params = load_params(folder, like["params"], shardings=jax.tree.map(lambda x: x.sharding, like["params"]))
    assert equal(params, saved["params"])
    assert alike(params, like["params"])
print("restored on 2 meshes")
"""


@pytest.mark.slow
def test_restores_on_another_mesh(tmp_path: Path) -> None:
    """Saved on 2 x 2 x 2 of 8 devices, restored on one device and on 4 x 2."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ON_ANOTHER_MESH, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert "restored on 2 meshes" in done.stdout, done.stderr
