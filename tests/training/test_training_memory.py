"""A batch that cannot fit is rejected before anything is read; one that may fit is not."""

from types import SimpleNamespace

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.parallel.axes import MeshConfig
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training import memory
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.memory import device_bytes, has_room, require_room


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


class _Device:
    def __init__(self, stats: dict[str, int] | None) -> None:
        self._stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self._stats


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ({"bytes_limit": 1000, "peak_bytes_in_use": 200}, True),
        ({"bytes_limit": 1000, "peak_bytes_in_use": 201}, False),
        ({"bytes_limit": 1000, "peak_bytes_in_use": 990}, False),
        (None, True),
    ],
)
def test_a_copy_needs_room_beside_the_peak(stats: dict[str, int] | None, expected: bool) -> None:
    """Two arrays of 300 and 100 bytes on one device, twice."""
    device = _Device(stats)

    def leaf(size: int) -> SimpleNamespace:
        return SimpleNamespace(addressable_shards=[SimpleNamespace(device=device, data=SimpleNamespace(nbytes=size))])

    assert has_room({"params": leaf(300), "opt_state": leaf(100)}) is expected
