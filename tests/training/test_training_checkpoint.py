"""Checkpoints: what is restored is bit by bit what was saved, damage is found, a failed save is raised."""

import asyncio
import gc
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.mesh import MeshConfig, build_mesh
from lifecycle.core.progress import Silent
from lifecycle.model.names import unstack
from lifecycle.training.checkpoint import Checkpointer, CheckpointError, load_params, read_params

LAYERS = 3

# After a failed write, which is raised as tested here, Orbax drops its other writes without awaiting them.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]


def fresh_state(seed: int = 0, width: int = 8) -> dict[str, Any]:
    """Parameters in float32 and bfloat16, AdamW's state, a counter."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embed": jax.random.normal(keys[0], (32, width)),
        "blocks": {
            "0+1": {
                "attention": {"q": jax.random.normal(keys[1], (LAYERS, width, width))},
                "norm": {"scale": jax.random.normal(keys[2], (LAYERS, width), jnp.bfloat16)},
            },
        },
    }
    return {"params": params, "opt_state": optax.adamw(1e-3).init(params), "step": jnp.int32(2**31 - 1)}


def assert_bit_equal(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def save_steps(folder: Path, *steps: int, keep: int = 9) -> None:
    checkpoints = Checkpointer(folder, every=1, keep=keep)
    for step in steps:
        checkpoints.save(step, fresh_state(step), {"step": step}, {"note": f"step {step}"})
    checkpoints.close()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpointer]:
    opened = Checkpointer(tmp_path / "checkpoints", every=2, keep=2)
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


def test_names_on_disk_are_per_layer(checkpoints: Checkpointer) -> None:
    import orbax.checkpoint as ocp

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


def test_every_and_keep(checkpoints: Checkpointer) -> None:
    for step in range(1, 9):
        if checkpoints.should_save(step):
            checkpoints.save(step, fresh_state(step), {"step": step}, {})
    checkpoints.wait()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["6", "8"]
    restored, data, _ = checkpoints.restore(fresh_state(), step=6)
    assert data == {"step": 6}
    assert_bit_equal(restored, fresh_state(6))


def test_saving_a_step_again_changes_nothing(checkpoints: Checkpointer) -> None:
    checkpoints.save(2, fresh_state(2), {}, {})
    checkpoints.save(2, fresh_state(3), {}, {})
    checkpoints.wait()
    assert_bit_equal(checkpoints.restore(fresh_state())[0], fresh_state(2))


def largest_file(folder: Path) -> Path:
    """The largest of the arrays' files."""
    return max((path for path in folder.glob("*/**/d/*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder: Path) -> None:
    os.truncate(largest_file(folder), 10)


def flip_a_bit(folder: Path) -> None:
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_a_file(folder: Path) -> None:
    largest_file(folder).unlink()


def forget_the_list(folder: Path) -> None:
    (folder / "files.json").unlink()


def cut_the_list(folder: Path) -> None:
    os.truncate(folder / "files.json", 10)


DAMAGES = {
    truncate: "has 10 bytes of",
    flip_a_bit: "has changed",
    remove_a_file: "is missing",
    forget_the_list: "no files.json",
    cut_the_list: "files.json is not JSON",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_newest_checkpoint_is_passed_over_and_told(tmp_path: Path, damage: Any) -> None:
    save_steps(tmp_path, 1, 2)
    damage(tmp_path / "2")
    notes = Notes()
    checkpoints = Checkpointer(tmp_path, every=1, keep=9, progress=notes)
    assert checkpoints.latest_step() == 1
    (told,) = notes.texts
    assert str(tmp_path / "2") in told and DAMAGES[damage] in told and "going on from step 1" in told
    restored, data, _ = checkpoints.restore(fresh_state())
    assert data == {"step": 1}
    assert_bit_equal(restored, fresh_state(1))
    checkpoints.save(2, fresh_state(2), {}, {})  # the step can be saved again
    checkpoints.close()
    assert_bit_equal(load_params(tmp_path, fresh_state()["params"]), fresh_state(2)["params"])


def test_a_step_damaged_twice_is_set_aside_twice(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    for _ in range(2):
        save_steps(tmp_path, 2)
        truncate(tmp_path / "2")
    save_steps(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.damaged", "3"]


def test_a_checkpoint_damaged_after_opening_is_not_restored(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    checkpoints = Checkpointer(tmp_path, every=1, keep=9)
    flip_a_bit(tmp_path / "1")
    with pytest.raises(CheckpointError, match="has changed"):
        checkpoints.restore(fresh_state())
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoints.restore(fresh_state(), step=5)
    checkpoints.close()


def test_orbax_own_metadata_is_not_needed(tmp_path: Path) -> None:
    """It is the one file that the list leaves out."""
    save_steps(tmp_path, 1)
    os.truncate(tmp_path / "1" / "_CHECKPOINT_METADATA", 5)
    checkpoints = Checkpointer(tmp_path, every=1, keep=9)
    restored, data, meta = checkpoints.restore(fresh_state())
    checkpoints.close()
    assert_bit_equal(restored, fresh_state(1))
    assert (data, meta) == ({"step": 1}, {"note": "step 1"})


def test_no_whole_checkpoint_is_an_error_that_lists_them(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    for step in ("1", "2"):
        truncate(tmp_path / step)
    for _ in range(2):  # not a new start the second time either
        with pytest.raises(CheckpointError, match=r"no checkpoint is whole \(step 2: .*; step 1: .*\)"):
            Checkpointer(tmp_path, every=1, keep=9)
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        load_params(tmp_path, fresh_state()["params"])


def test_what_a_kill_left_half_written_is_cleared(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    for step in (2, 3):
        (tmp_path / f"{step}.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    checkpoints = Checkpointer(tmp_path, every=1, keep=9)
    assert checkpoints.latest_step() == 1
    checkpoints.save(2, fresh_state(2), {}, {})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 4 KiB: writes fail as on a full disk, in whichever thread."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failing_save(folder: Path) -> Checkpointer:
    checkpoints = Checkpointer(folder, every=10, keep=9)
    checkpoints.save(2, fresh_state(2, width=256), {}, {})
    return checkpoints


def test_a_failed_save_is_raised_after_a_later_step(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    save_steps(tmp_path, 1)
    request.getfixturevalue("full_disk")
    checkpoints = failing_save(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: the checkpoint of step 2 .* it goes on from step 1"):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            checkpoints.should_save(3)
            time.sleep(0.01)
    checkpoints.close()
    assert_bit_equal(load_params(tmp_path, fresh_state()["params"]), fresh_state(1)["params"])


def test_a_failed_save_is_raised_at_close(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    save_steps(tmp_path, 1)
    request.getfixturevalue("full_disk")
    with pytest.raises(CheckpointError, match="File too large"):
        failing_save(tmp_path).close()
    assert_bit_equal(load_params(tmp_path, fresh_state()["params"]), fresh_state(1)["params"])


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    checkpoints = Checkpointer(tmp_path, every=1, keep=9)
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


@pytest.mark.parametrize("ways", [1, 4])
def test_parts_are_read_in_any_order(tmp_path: Path, ways: int) -> None:
    """Of an array that lies on the disk as one chunk, and of one that was cut over its first dimension."""
    experts = {name: jax.random.normal(jax.random.key(n), (8, 4, 6)) for n, name in enumerate(("gate", "up"))}
    cut = NamedSharding(build_mesh(MeshConfig(fsdp=ways)), P("fsdp"))
    checkpoints = Checkpointer(tmp_path, every=1, keep=1)
    experts = jax.device_put(experts, cut)
    checkpoints.save(1, {"params": experts, "opt_state": {"mu": experts}}, {}, {})
    checkpoints.close()
    read = read_params(tmp_path, experts)
    for expert in (0, 1, 7, 3, 2, 2):
        for name in ("gate", "up", "gate"):
            assert np.array_equal(read(name, expert), experts[name][expert])
        assert np.array_equal(read("up", None), experts["up"])


def test_a_damaged_checkpoint_or_one_of_another_model_is_not_read(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    params = fresh_state()["params"]
    with pytest.raises(CheckpointError, match=r"params blocks\.0\.attention\.q is \(8, 8\).*has it as \(16, 16\)"):
        read_params(tmp_path, fresh_state(width=16)["params"])
    flip_a_bit(tmp_path / "2")
    with pytest.raises(CheckpointError, match="has changed"):
        read_params(tmp_path, params, step=2)
    assert_bit_equal(read_params(tmp_path, params)("embed", None), fresh_state(1)["params"]["embed"])
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        read_params(tmp_path / "1" / "not there", params)


ON_ANOTHER_MESH = """
import sys
from pathlib import Path

import jax
import numpy as np

from lifecycle.core.mesh import MeshConfig, build_mesh, tree_shardings
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import abstract_params, logical_axes
from lifecycle.training.checkpoint import Checkpointer, load_params

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
first = Checkpointer(folder, every=1, keep=1)
first.save(1, saved, {}, {})
layer = first._unstacked(saved)["params.blocks.0.attention.q"]
assert tuple(layer.sharding.spec) == (("fsdp", "expert", "context"), "tensor")
first.close()
for sizes in ({}, {"fsdp": 4, "tensor": 2}):
    like = state_on(1, **sizes)
    checkpoints = Checkpointer(folder, every=1, keep=1)
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


def test_restores_on_another_mesh(tmp_path: Path) -> None:
    """Saved on 2 x 2 x 2 of 8 devices, restored on one device and on 4 x 2."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ON_ANOTHER_MESH, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert "restored on 2 meshes" in done.stdout, done.stderr


def test_a_failed_write_that_nobody_waited_for_is_not_logged_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    """Orbax writes many arrays at once; when the first fails, asyncio logs the others as they are collected."""
    code = compile(
        "def write():\n    raise ValueError('No space left on device')", "/x/orbax/checkpoint/save.py", "exec"
    )
    scope: dict[str, Any] = {}
    exec(code, scope)

    async def abandon(write: Callable[[], None]) -> None:
        async def task() -> None:
            write()

        running = asyncio.ensure_future(task())
        await asyncio.sleep(0)
        del running
        gc.collect()

    def own() -> None:
        raise ValueError("another part's failure")

    asyncio.run(abandon(scope["write"]))
    assert not caplog.records
    asyncio.run(abandon(own))
    assert [record.exc_info is not None for record in caplog.records] == [True]
