"""A batch that cannot fit is rejected before anything is read; one that may fit is not."""

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.parallel.axes import MeshConfig
from lifecycle.testing.jobs import MODEL
from lifecycle.training import memory
from lifecycle.training.config import NextTokenConfig
from lifecycle.training.memory import device_bytes, require_room


def train(rows: int, **settings: object) -> NextTokenConfig:
    return NextTokenConfig.model_validate(
        {"objective": "next_token", "steps": 1, "seq_len": 1024, "global_batch_size": rows} | settings
    )


def test_a_gigantic_batch_is_rejected_with_the_settings_to_change() -> None:
    with pytest.raises(ConfigError, match=r"train\.pretrain: .* GB, and a device has .* train\.pretrain\.grad_accum"):
        require_room("train.pretrain", train(8_000_000), MODEL, MeshConfig())
    require_room("train.pretrain", train(8), MODEL, MeshConfig())


def test_the_bound_is_the_layers_inputs_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = 64 * 1024 * MODEL.d_model * MODEL.num_layers * 4
    for held, settings, mesh in (
        (exact, {}, MeshConfig()),
        (exact // 2, {"grad_accum": 2}, MeshConfig()),
        (exact // 8, {}, MeshConfig(fsdp=2, tensor=2, replica=2)),
        (0, {"remat": {"input": "offload"}}, MeshConfig()),
    ):
        monkeypatch.setattr(memory, "device_bytes", lambda held=held: held)
        require_room("train.x", train(64, **settings), MODEL, mesh)
        if held:
            monkeypatch.setattr(memory, "device_bytes", lambda held=held: held - 1)
            with pytest.raises(ConfigError, match="train\\.x"):
                require_room("train.x", train(64, **settings), MODEL, mesh)


def test_devices_of_a_cpu_share_its_memory() -> None:
    assert 1e8 < device_bytes() < 1e14
