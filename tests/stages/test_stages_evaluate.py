"""The evaluate stage: what cannot be generated on one device is refused before any work, with the sizes."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.evals.kinds.bits_per_byte import BitsPerByteTask
from lifecycle.evals.kinds.generation import GenerationTask
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.stages.evaluate import require_room

MODEL = ModelConfig(
    vocab_size=128256, d_model=4096, d_ff=14336, num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128,
    compute_dtype="bfloat16",
)  # fmt: skip
TASKS = {
    "text": BitsPerByteTask(name="text", kind="bits_per_byte", rows="text.jsonl"),
    "ask": GenerationTask(name="ask", kind="generate", rows="ask.jsonl"),
}


def run_config(mesh: MeshConfig, *tasks: str) -> Any:
    chosen = tuple(TASKS[name] for name in tasks)
    return SimpleNamespace(model_of=lambda stage: MODEL, evaluated=("base",), mesh=mesh, tasks=chosen)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the first device tells of its memory."""
    told: dict[str, int] = {}
    device = SimpleNamespace(memory_stats=lambda: told or None)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    return told


def test_a_model_that_one_device_cannot_hold_beside_its_part_generates_nothing(memory: dict[str, int]) -> None:
    config = run_config(MeshConfig(replica=2, fsdp=16), "text", "ask")
    memory["bytes_limit"] = int(16e9)
    with pytest.raises(
        ConfigError, match=r"tasks: ask generate on one device, which has 16\.0 GB; the model takes 16\.1 GB .* 2\.0 GB"
    ):
        require_room(config)
    memory["bytes_limit"] = int(18.1e9)
    require_room(config)


def test_what_is_scored_over_the_mesh_or_was_trained_on_one_device_is_not_refused(memory: dict[str, int]) -> None:
    memory["bytes_limit"] = int(1e9)
    require_room(run_config(MeshConfig(fsdp=16), "text"))
    require_room(run_config(MeshConfig(), "text", "ask"))
    memory.clear()
    require_room(run_config(MeshConfig(fsdp=16), "ask"))  # a device that does not tell
