"""Kinds of devices: a chip that JAX gives two names is one kind, for compiler options and for kernels."""

import jax
import pytest
from jax.sharding import AbstractMesh

from lifecycle.core.platform import compiler_options, device_kind, kind_of
from lifecycle.kernels import flash_blocks, splash


@pytest.mark.parametrize(
    ("name", "kind"), [("TPU v5p", "TPU v5"), ("TPU v5e", "TPU v5 lite"), ("TPU v6e", "TPU v6 lite")]
)
def test_a_chip_with_two_names_is_one_kind(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_of(name) == kind_of(kind) == kind
    assert compiler_options(name) == compiler_options(kind) != {}
    device = type("Device", (), {"device_kind": name, "platform": "tpu"})()
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert jax.sharding.get_abstract_mesh() == AbstractMesh((), ())
    assert device_kind() == kind
    for blocks_of in (flash_blocks.blocks_of, splash.blocks_of):
        assert blocks_of(device_kind(), 128) == blocks_of(kind, 128)


def test_other_names_stay_and_have_no_options_that_nobody_measured() -> None:
    assert kind_of("TPU v4") == "TPU v4" and not [o for o in compiler_options("TPU v4") if "vmem" in o]
    assert compiler_options("NVIDIA H100 80GB HBM3") == {}
