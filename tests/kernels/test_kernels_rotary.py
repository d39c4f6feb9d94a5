"""RoPE's stretched frequencies as transformers computes them at the published settings of real models."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.typing import Array
from lifecycle.kernels import rotary
from lifecycle.kernels.rotary import rotary_angles, rotate, rotation_scale, score_scale
from lifecycle.model.config import RopeScaling

GOLDEN = Path(__file__).parents[1] / "golden/families/rotary.npz"  # made by golden/make_family_golden.py

# head_dim, theta, scaling
SETTINGS = {
    "llama3_1": (128, 500_000.0, RopeScaling(kind="llama3", factor=8.0, original_max_seq_len=8192)),
    "gemma3": (256, 1_000_000.0, RopeScaling(kind="linear", factor=8.0)),
    "deepseek_v3": (
        64, 10_000.0, RopeScaling(kind="yarn", factor=40.0, original_max_seq_len=4096, mscale=1.0, mscale_all_dim=1.0),
    ),
    "gpt_oss": (64, 150_000.0, RopeScaling(kind="yarn", factor=32.0, original_max_seq_len=4096, truncate=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_frequencies_and_attention_factor_are_transformers(name: str) -> None:
    rope_dim, theta, scaling = SETTINGS[name]
    *frequencies, factor = np.load(GOLDEN)[name].astype(np.float64)
    assert rotation_scale(scaling) == pytest.approx(factor, rel=1e-6)
    cos, sin = np.asarray(rotary_angles(jnp.array([[1]]), rope_dim, theta, scaling)).reshape(2, -1)
    np.testing.assert_allclose(np.hypot(cos, sin), factor, rtol=1e-6)
    np.testing.assert_allclose(np.arctan2(sin, cos), frequencies, rtol=2e-6)  # at position 1 the angle is the frequency


def test_a_rotation_by_scaled_angles_has_the_transposed_gradient() -> None:
    rope_dim, theta, scaling = SETTINGS["gpt_oss"]
    angles = rotary_angles(jnp.array([[3, 70]]), rope_dim, theta, scaling)
    draw = np.random.default_rng(0)
    x, grad = (jnp.asarray(draw.normal(size=(1, 2, 3, rope_dim)), jnp.float32) for _ in range(2))
    turned, pull = jax.vjp(lambda x: rotate(x, angles), x)
    np.testing.assert_allclose((turned * grad).sum(), (x * pull(grad)[0]).sum(), rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(turned), jnp.linalg.norm(x) * (0.1 * math.log(32) + 1), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tpu_turns_as_a_cpu_does(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the halves are swapped by a product; values and gradients are the same to the last bit."""
    rope_dim, theta, scaling = SETTINGS["gpt_oss"]
    x, grad = jax.random.normal(jax.random.key(0), (2, 1, 5, 3, rope_dim)).astype(dtype)

    def turned_and_back() -> tuple[jax.Array, jax.Array]:
        angles = rotary_angles(jnp.array([[0, 1, 2, 9, 300]]), rope_dim, theta, scaling)
        turned, pull = jax.vjp(lambda x: rotate(x, angles), x)
        return turned, pull(grad)[0]

    exact = turned_and_back()
    monkeypatch.setattr(rotary, "platform", lambda: "tpu")
    assert all(np.array_equal(found, wanted) for found, wanted in zip(turned_and_back(), exact, strict=True))


def test_scores_are_scaled_by_the_square_of_mscale_all_dim_only() -> None:
    assert score_scale(None) == score_scale(SETTINGS["gpt_oss"][2]) == 1
    assert score_scale(SETTINGS["deepseek_v3"][2]) == pytest.approx((0.1 * math.log(40) + 1) ** 2)


def test_cosines_are_taken_once_for_all_rotations() -> None:
    """Fused into every rotation they were 7 % of the quickstart's step."""

    def rotations(x: Array, positions: Array) -> Array:
        angles = rotary_angles(positions, 32, 1e4)
        return rotate(jnp.tanh(rotate(x, angles)), angles)

    compiled = jax.jit(rotations).lower(jnp.ones((2, 16, 2, 32)), jnp.zeros((2, 16), jnp.int32)).compile()
    assert (compiled.as_text() or "").count(" cosine(") == 1
