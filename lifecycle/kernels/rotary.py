"""Rotary position embedding (Su et al. 2021, "RoFormer", section 3.2.2), in halves as in Llama's published weights, and
the scaling of its frequencies to longer sequences.

The gradient of a rotation is the inverse rotation, written out: differentiating the concatenation pads and adds
instead.
"""

import math
from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int


class Scaling(Protocol):
    """The fields of a model's `rope_scaling` (`model/config.py`), which is frozen."""

    @property
    def kind(self) -> Literal["linear", "llama3", "yarn"]:
        """Which frequencies are divided, and by how much."""
        ...

    @property
    def factor(self) -> float:
        """What the slowest are divided by."""
        ...

    @property
    def original_max_seq_len(self) -> int:
        """The length that the model was trained with before."""
        ...

    @property
    def low_freq_factor(self) -> float:
        """`llama3`: longer waves than the original length divided by this are divided in full."""
        ...

    @property
    def high_freq_factor(self) -> float:
        """`llama3`: shorter ones than the length divided by this stay."""
        ...

    @property
    def beta_fast(self) -> float:
        """`yarn`: what rotates more often than this over the original length stays."""
        ...

    @property
    def beta_slow(self) -> float:
        """`yarn`: what rotates less often is divided in full."""
        ...

    @property
    def mscale(self) -> float | None:
        """`yarn`: its scale, divided by the next one's, scales cosines and sines."""
        ...

    @property
    def mscale_all_dim(self) -> float | None:
        """`yarn`: its scale, squared, multiplies the scores."""
        ...

    @property
    def truncate(self) -> bool:
        """`yarn`: whether the ramp's ends are rounded outwards to integers."""
        ...


def rotary_angles(
    positions: Int[Array, "B T"], rope_dim: int, theta: float, scaling: Scaling | None = None
) -> Float[Array, "2 B T 1 Dr"]:
    """Cosines and sines of the positions' angles, float32, for all layers and heads; `Dr` is half of the rotated
    dimensions. On TPUs it is all of them: half of 128 lanes is expensive there, and the halves are swapped by a product
    with a signed permutation, which the compiler fuses with the rest.

    `yarn` multiplies both by its attention factor, so a rotation also scales queries and keys.
    """
    frequencies = theta ** (-jnp.arange(rope_dim // 2, dtype=jnp.float32) / (rope_dim // 2))
    if scaling is not None:
        frequencies = _stretched(frequencies, theta, scaling)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    if platform() == "tpu":
        angles = jnp.concatenate([angles, angles], axis=-1)
    turns = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    turns = turns if scaling is None else turns * rotation_scale(scaling)
    if platform() == "cpu":  # otherwise every rotation recomputes them: 15 of the quickstart's 235 core-ms
        turns = jax.lax.optimization_barrier(turns)
    return turns


def _stretched(frequencies: Array, theta: float, scaling: Scaling) -> Array:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    kept = _llama3_kept(frequencies, scaling) if scaling.kind == "llama3" else _yarn_kept(frequencies, theta, scaling)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def _llama3_kept(frequencies: Array, scaling: Scaling) -> Array:
    """The share of each frequency that stays: 1 for waves much shorter than the original length, 0 for long ones."""
    rotations = scaling.original_max_seq_len * frequencies / (2 * math.pi)
    ramp = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return jnp.clip(ramp, 0, 1)


def _yarn_kept(frequencies: Array, theta: float, scaling: Scaling) -> Array:
    """The same share by YaRN's ramp, linear in the dimension between two numbers of rotations (its section 3.2)."""
    half = frequencies.shape[0]

    def dim_of(rotations: float) -> float:  # the dimension with this many rotations over the original length
        return half * math.log(scaling.original_max_seq_len / (rotations * 2 * math.pi)) / math.log(theta)

    low, high = dim_of(scaling.beta_fast), dim_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    width = high - low or 0.001  # as published: a step, not a division by zero
    return 1 - jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / width, 0, 1)


def rotation_scale(scaling: Scaling) -> float:
    """The factor on cosines and sines: YaRN's attention factor (its section 3.4; DeepSeek's ratio of two scales) or
    1."""
    if scaling.kind != "yarn":
        return 1.0
    if scaling.mscale and scaling.mscale_all_dim:
        return _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return _mscale(scaling.factor, 1.0)


def score_scale(scaling: Scaling | None) -> float:
    """The factor on latent attention's scores in addition to their usual scale (DeepSeek's `mscale_all_dim`)."""
    if scaling is None or not scaling.mscale_all_dim:
        return 1.0
    return _mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def rotate(x: Float[Array, "B T H Dh"], angles: Float[Array, "2 B T 1 Dr"]) -> Float[Array, "B T H Dh"]:
    """Rotates each pair `(x[i], x[i + Dh/2])` by its position's angle; computes in float32. On TPUs, a kernel rotates
    heads that are multiples of 128 lanes in their own layout."""
    if platform() == "tpu" and x.shape[-1] % 128 == 0:
        from lifecycle.kernels.rotary_rows import rotate_rows

        return rotate_rows(x, angles[:, :, :, 0])
    return rotate_plain(x, angles)


@jax.custom_vjp
def rotate_plain(x: Float[Array, "B T H Dh"], angles: Float[Array, "2 B T 1 Dr"]) -> Float[Array, "B T H Dh"]:
    """The same in plain operations, for any head."""
    return _turn(x, angles[0], angles[1])


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    wide = x.astype(jnp.float32)
    if cos.shape[-1] == x.shape[-1]:
        swapped = jnp.dot(x, _swap(x.shape[-1], x.dtype), precision=jax.lax.Precision.HIGHEST)
        return (wide * cos + swapped.astype(jnp.float32) * sin).astype(x.dtype)
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _swap(size: int, dtype: jnp.dtype) -> Float[Array, "Dh Dh"]:
    """`x @ swap` is `(-second half, first half)`, exactly."""
    half = size // 2
    return jnp.eye(size, k=half, dtype=dtype) - jnp.eye(size, k=-half, dtype=dtype)


def _rotate(x: Array, angles: Array) -> tuple[Array, Array]:
    return rotate_plain(x, angles), angles


def _rotate_gradient(angles: Array, grad: Array) -> tuple[Array, None]:
    return _turn(grad, angles[0], -angles[1]), None


rotate_plain.defvjp(_rotate, _rotate_gradient)
