"""Optimizers and learning-rate schedules.

`muon` takes the matrices of the layers by Muon (Jordan et al. 2024) and everything else by Adam; its update is scaled
to Adam's usual size, `0.2 sqrt(max(rows, columns))` (Liu et al. 2025, "Muon is Scalable for LLM Training", section
2.2), so that one learning rate and one weight decay serve both. Stacked layers are a batch of matrices to it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lifecycle.core.typing import Array, Float
from lifecycle.model.decoder import Params
from lifecycle.training.config import OptimizerConfig

# Five quintic polynomials, each the minimax choice given the ones before (Amsel et al. 2025, "The Polar Express",
# algorithm 1, lower bound 1e-3, with its safety factor 1.01 on all but the last).
POLAR_EXPRESS = (
    (8.205160414005566, -22.901934987056034, 16.460724910180303),
    (4.066395159942799, -2.8611543470860546, 0.5183995226040655),
    (3.909595044233003, -2.8233508663174697, 0.5250370147229885),
    (3.2855640171637236, -2.4153019596003586, 0.4852941093134937),
    (2.2774640019498994, -1.6198217760479465, 0.3984858939343595),
)


def build_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: warm-up, then stable and linear decay (Hu et al. 2024, "MiniCPM", section 4), a cosine
    (Loshchilov and Hutter 2017), or constant."""
    schedule, peak = config.schedule, config.learning_rate
    warmup = min(schedule.warmup_steps, steps)
    if schedule.kind == "cosine":
        main = optax.cosine_decay_schedule(peak, max(1, steps - warmup), schedule.final_share)
    elif schedule.kind == "constant":
        main = optax.constant_schedule(peak)
    else:
        decay = min(max(1, round(schedule.decay_share * steps)), max(1, steps - warmup))  # the run ends with it
        start = max(0, steps - warmup - decay)
        main = optax.linear_schedule(peak, peak * schedule.final_share, decay, transition_begin=start)
    # the first step already moves: a rate of exactly zero would waste a batch
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, main], [warmup])


def build_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The transformation from mean gradients to updates; weight decay spares vectors and is decoupled."""
    adam = optax.scale_by_adam(config.beta1, config.beta2, eps=1e-10)
    rule = adam
    if config.name == "muon":
        rule = optax.partition({"muon": scale_by_muon(config.momentum), "adam": adam}, _muon_labels)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        rule,
        optax.add_decayed_weights(config.weight_decay, mask=_decayed),
        optax.scale_by_learning_rate(build_schedule(config, steps)),
    )


def _is_vector(name: str) -> bool:
    """Whether a parameter of this name is no matrix: a norm's scale, a bias, attention's sinks."""
    return name in ("scale", "sinks") or name.endswith("_bias")


def _is_layer_matrix(path: tuple[Any, ...], _: Any) -> bool:
    return path[0].key == "blocks" and not _is_vector(path[-1].key)


def _muon_labels(params: Params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda *leaf: "muon" if _is_layer_matrix(*leaf) else "adam", params)


def _decayed(params: Params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: not _is_vector(path[-1].key), params)


class MuonState(NamedTuple):
    momentum: Params


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised; leaves are `[..., rows, columns]`."""

    def init(params: Params) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: Params, state: MuonState, params: Params | None = None) -> tuple[Params, MuonState]:
        del params
        average = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, state.momentum, grads)
        ahead = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, average, grads)
        return jax.tree.map(lambda x: orthogonalise(x) * 0.2 * max(x.shape[-2:]) ** 0.5, ahead), MuonState(average)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def orthogonalise(matrix: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch rows columns"]:
    """About the nearest semi-orthogonal matrix, `U V'` of the singular value decomposition: its singular values are
    between 0.81 and 1.13 where the input's are above 1e-3 of its Frobenius norm."""
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.swapaxes(-1, -2) if is_tall else matrix
    x /= jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) * 1.01 + 1e-20
    for step, (a, b, c) in enumerate(POLAR_EXPRESS):
        if step < len(POLAR_EXPRESS) - 1:
            a, b, c = a / 1.01, b / 1.01**3, c / 1.01**5
        gram = jnp.einsum("...ij,...kj->...ik", x, x)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.swapaxes(-1, -2) if is_tall else x
