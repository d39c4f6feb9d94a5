"""What a kept compilation is kept under, and where."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.kernels.seldom import SELDOM
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.compiled.compilation import Compilation
from lifecycle.planning.programs import kept
from lifecycle.planning.programs.fingerprint import anonymous, fingerprint
from lifecycle.planning.programs.kept import CompilationCache, compilation_key
from lifecycle.planning.topology import parse_topology
from tests.planning.fakes import CUBE, fake_mesh

COMPILATION = Compilation("HloModule m\n", 10, 6, 2, 3, 4.5)
TREE = MeshConfig(fsdp=16, tensor=4)


def test_a_kept_compilation_is_what_was_put_and_under_no_other_key(tmp_path: Path) -> None:
    cache = CompilationCache(tmp_path)
    assert cache.get("a") is None
    cache.put("a", COMPILATION)
    assert cache.get("a") == COMPILATION
    assert cache.get("b") is None
    misfit = Compilation(None, 10, 0, 0, 0, 1.0)
    cache.put("b", misfit)
    assert cache.get("b") == misfit
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json.gz", "b.json.gz"]


def test_compilations_are_kept_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CompilationCache().folder == tmp_path / "lifecycle" / "compiled"


def lowered(function: Any = jnp.tanh) -> Any:
    return jax.jit(function).lower(jnp.ones((4, 4)))


def test_devices_topology_and_options_are_in_the_key() -> None:
    own = compilation_key(lowered(), CUBE, fake_mesh(CUBE, TREE), {"a": "1"})
    assert own == compilation_key(lowered(), CUBE, fake_mesh(CUBE, TREE), {"a": "1"})
    flat = parse_topology("v5p:2x4x8")
    turned = fake_mesh(CUBE, TREE)
    turned.devices = turned.devices[..., ::-1]
    others = {
        compilation_key(lowered(jnp.sin), CUBE, fake_mesh(CUBE, TREE), {"a": "1"}),
        compilation_key(lowered(), flat, fake_mesh(flat, TREE), {"a": "1"}),
        compilation_key(lowered(), CUBE, turned, {"a": "1"}),
        compilation_key(lowered(), CUBE, fake_mesh(CUBE), {"a": "1"}),
        compilation_key(lowered(), CUBE, fake_mesh(CUBE, TREE), {"a": "2"}),
    }
    assert len(others) == 5 and own not in others


@pytest.mark.parametrize("name", ["LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION"])
def test_the_environments_options_for_the_compiler_are_in_the_key(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    own = compilation_key(lowered(), CUBE, fake_mesh(CUBE, TREE), {})
    monkeypatch.setenv(name, "other")
    assert compilation_key(lowered(), CUBE, fake_mesh(CUBE, TREE), {}) != own


def test_the_libraries_versions_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    own = compilation_key(lowered(), CUBE, fake_mesh(CUBE, TREE), {})
    monkeypatch.setattr(kept, "versions", lambda _: {"libtpu": "other"})
    assert compilation_key(lowered(), CUBE, fake_mesh(CUBE, TREE), {}) != own


def test_names_and_places_in_the_source_are_no_part_of_a_program() -> None:
    def one(weights: Any, x: Any) -> Any:
        return {"out": jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x @ weights)}

    def other(first: Any, second: Any) -> Any:
        positive = second[0, 0] > 0
        with jax.named_scope("elsewhere"):
            return {"result": jax.lax.cond(positive, lambda y: jnp.sin(y), lambda y: jnp.cos(y), second @ first)}

    x = jnp.ones((4, 4))
    texts = [jax.jit(function).lower(x, x).as_text() for function in (one, other)]
    assert texts[0] != texts[1]
    assert fingerprint(jax.jit(one).lower(x, x)) == fingerprint(jax.jit(other).lower(x, x))


def test_constants_shapes_meshes_and_called_kernels_are_part_of_it() -> None:
    def sharded(sizes: tuple[int, int]) -> Any:
        mesh = Mesh(np.array(jax.devices()[:4]).reshape(sizes), ("fsdp", "tensor"))
        x = jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", "tensor")))
        return jax.jit(jnp.tanh).lower(x)

    programs = [
        lowered(lambda x: x * 2),
        lowered(lambda x: x * 3),
        jax.jit(lambda x: x * 2).lower(jnp.ones(4)),
        sharded((4, 1)),
        sharded((2, 2)),
    ]
    assert len({fingerprint(program) for program in programs}) == 5
    call = "module @m {\n  func.func public @main(%a: f32) {\n    stablehlo.custom_call @NAME(%a) : f32\n  }\n}\n"
    assert anonymous(call.replace("NAME", "one")) != anonymous(call.replace("NAME", "two"))
    kernel = (
        'backend_config = "{\\22body\\22: \\22QUJD\\22, \\22debug_locations\\22: \\22LOC=\\22}", kernel_name = "flash"'
    )
    assert anonymous(kernel) == anonymous(kernel.replace("LOC=", "other"))
    assert anonymous(kernel) != anonymous(kernel.replace("QUJD", "QUJE"))
    assert anonymous(kernel) != anonymous(kernel.replace("flash", "other"))


def test_a_loop_that_is_marked_as_seldom_needed_is_another_program() -> None:
    def loop(scope: str) -> Any:
        def run(x: Any) -> Any:
            with jax.named_scope(scope):
                return jax.lax.while_loop(lambda y: y.sum() < 10, lambda y: y + 1, x)

        return jax.jit(run).lower(jnp.zeros(4))

    assert fingerprint(loop("one")) == fingerprint(loop("other"))
    assert fingerprint(loop(SELDOM)) != fingerprint(loop("other"))


NAMES = st.from_regex(r"[a-z_][a-zA-Z0-9_.]{0,8}", fullmatch=True)


@given(st.lists(NAMES, min_size=3, max_size=3, unique=True))
def test_symbols_are_renamed_alike_wherever_they_stand(names: list[str]) -> None:
    module, main, inner = names
    text = (
        f"module @{module} {{\n  func.func public @{main}(%a: f32) {{\n"
        f"    call @{inner}(%a)\n    call @{inner}(%a)\n  }}\n  func.func private @{inner}(%a: f32) {{\n  }}\n}}\n"
    )
    assert anonymous(text) == text.replace(f"@{inner}(", "@2(").replace(f"@{main}(", "@1(").replace(
        f"@{module} ", "@0 "
    )
