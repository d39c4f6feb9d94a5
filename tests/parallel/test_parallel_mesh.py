"""The mesh: what does not divide is refused with the axis and the nearest size that does; rules map names to axes."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from lifecycle.core.config import ConfigError, validate
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import AXES, RULES, MeshConfig, require_cuts_rows, require_divides
from lifecycle.parallel.mesh import build_mesh, sharding, spec, tree_shardings


def test_a_mesh_has_all_axes_in_order() -> None:
    mesh = build_mesh(MeshConfig(fsdp=2, tensor=4))
    assert mesh.axis_names == AXES and mesh.devices.shape == (1, 1, 2, 1, 1, 4)
    assert build_mesh(MeshConfig()).size == 1


def test_a_mesh_larger_than_the_machine_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"mesh: fsdp=6 x tensor=2 needs 12 devices, this job has 8.*mesh\.fsdp=4$"):
        build_mesh(MeshConfig(fsdp=6, tensor=2))
    with pytest.raises(ConfigError, match=r"tensor: Input should be greater than or equal to 1 \(given: 0\)"):
        validate(MeshConfig, {"tensor": 0})


def test_every_rule_names_axes_of_the_mesh() -> None:
    assert {axis for axes in RULES.values() for axis in axes} <= set(AXES)


def test_specs_follow_the_rules() -> None:
    assert spec("batch", None, "heads") == P(("replica", "fsdp", "expert"), None, "tensor")
    assert spec("layers", "embed") == P("stage", ("fsdp", "expert", "context"))
    mesh = build_mesh(MeshConfig(fsdp=2, tensor=2))
    placed = jax.device_put(jnp.zeros((4, 6)), sharding(mesh, "embed", "mlp"))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    tree = tree_shardings(mesh, {"a": ("embed",), "b": {"c": (None, "mlp")}})
    assert tree["a"].spec == P(("fsdp", "expert", "context")) and tree["b"]["c"].spec == P(None, "tensor")


def test_the_nearest_dividing_size_is_named() -> None:
    with pytest.raises(ConfigError, match=r"mesh\.tensor=5 does not divide model\.d_ff=64.*: mesh\.tensor=4$"):
        require_divides(MeshConfig(tensor=5), "mlp", 64, "model.d_ff")
    with pytest.raises(ConfigError, match=r"mesh\.fsdp=3 does not divide rows=8.*: mesh\.fsdp=4$|mesh\.fsdp=2$"):
        require_divides(MeshConfig(replica=2, fsdp=3), "batch", 8, "rows")
    with pytest.raises(ConfigError, match=r"mesh\.replica=3 does not divide rows=8.*: mesh\.replica=[24]$"):
        require_divides(MeshConfig(replica=3, fsdp=2), "batch", 8, "rows")
    with pytest.raises(ConfigError, match=r"mesh\.replica=3 x mesh\.fsdp=5 does not divide rows=8.*; change both$"):
        require_divides(MeshConfig(replica=3, fsdp=5), "batch", 8, "rows")
    require_divides(MeshConfig(tensor=5), "embed", 7, "an axis that is not sharded over tensor")


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 200))
def test_what_is_named_as_nearest_is_accepted(replica: int, fsdp: int, rows: int) -> None:
    try:
        require_divides(MeshConfig(replica=replica, fsdp=fsdp), "batch", rows, "rows")
    except ConfigError as error:
        assert rows % (replica * fsdp)
        if "change both" in str(error):
            assert rows % replica and rows % fsdp
            return
        axis, _, size = str(error).rpartition("mesh.")[2].partition("=")
        fitting = MeshConfig(**({"replica": replica, "fsdp": fsdp} | {axis: int(size)}))
        require_divides(fitting, "batch", rows, "rows")
    else:
        assert rows % (replica * fsdp) == 0


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(fsdp=3), r"mesh\.fsdp=3 does not divide model\.d_model=32; nearest: mesh\.fsdp=[24]$"),
        (MeshConfig(tensor=3), r"mesh\.tensor=3 does not divide model\.num_heads=4"),
        (MeshConfig(tensor=4), r"mesh\.tensor=4 does not divide model\.num_kv_heads=2; .*mesh\.tensor=2$"),
    ],
)
def test_a_model_that_a_mesh_does_not_divide_is_refused(mesh: MeshConfig, message: str) -> None:
    model = ModelConfig(vocab_size=96, d_model=32, d_ff=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
    model.check_mesh(MeshConfig(fsdp=4, tensor=2, replica=3))
    with pytest.raises(ConfigError, match=message):
        model.check_mesh(mesh)


@pytest.mark.parametrize(("field", "size"), [("d_ff", 62), ("vocab_size", 98)])
def test_feed_forward_and_vocabulary_are_checked_too(field: str, size: int) -> None:
    sizes = {"vocab_size": 96, "d_model": 32, "d_ff": 64, "num_layers": 2, "head_dim": 8}
    model = ModelConfig.model_validate(sizes | {"num_heads": 4, "num_kv_heads": 4, field: size})
    with pytest.raises(ConfigError, match=rf"mesh\.tensor=4 does not divide model\.{field}={size}; .*mesh\.tensor=2$"):
        model.check_mesh(MeshConfig(tensor=4))


def test_a_row_that_is_not_cut_evenly_names_the_nearest_length() -> None:
    require_cuts_rows(MeshConfig(context=4, tensor=2), 128, "pretrain.seq_len")
    with pytest.raises(ConfigError, match=r"multiple of 16; pretrain\.seq_len=100 .*nearest: 96$"):
        require_cuts_rows(MeshConfig(context=4, tensor=2), 100, "pretrain.seq_len")
