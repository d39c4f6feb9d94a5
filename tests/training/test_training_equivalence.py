"""Every objective: packed rows give what unpacked ones do, micro-batches the whole batch, and any mesh one device."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.parallel.placement import shard_batch
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import TinyRun, held_by, objective_of, rows_of
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.batches import one_epoch
from lifecycle.training.freeze import split
from lifecycle.training.objectives.policy import KEPT, TOKEN_ADVANTAGES
from lifecycle.training.objectives.ppo import RETURNS, VALUES
from lifecycle.training.objectives.registry import PACKAGE, SEGMENTS, ObjectiveKind, objective_kind, register
from lifecycle.training.policy import PolicyConfig, ValueConfig
from lifecycle.training.state import TrainState, state_shardings
from lifecycle.training.step import make_train_step
from lifecycle.training.taught import TEACHER_IDS, TEACHER_LOGPROBS

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


class AnyPolicyConfig(PolicyConfig):
    """Policy gradients of completions that are given."""

    objective: str = "policy"


class AnyValuedConfig(PolicyConfig):
    """The same with a value function, whose estimates are given too."""

    objective: str = "valued"
    value: ValueConfig = ValueConfig()


OF_BATCH = f"{PACKAGE}.policy:of_batch"
register(ObjectiveKind("policy", AnyPolicyConfig, "prompts", f"{PACKAGE}.policy:policy_gradient", OF_BATCH))
register(ObjectiveKind("valued", AnyValuedConfig, "prompts", f"{PACKAGE}.ppo:ppo", OF_BATCH))

OF_TOKENS = (VALUES, RETURNS, TOKEN_ADVANTAGES)
ACCUMULATED, ANYWHERE = 1e-6, 1e-5
ROWS = 8
GRADIENT = optax.chain(optax.trace(decay=0.0), optax.scale(-1.0))  # its state after a step is the gradient
SMOOTHED = ("cdpo", "robust", "exo_pair", "aot", "aot_unpaired")
PLAIN = ("sigmoid", "hinge", "ipo", "sigmoid_norm", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "sft")
BY_DEFAULT: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {"loss": dict.fromkeys((*SMOOTHED, *PLAIN), 0.1), "label_smoothing": 0.1, "length_alpha": 0.4}),
}
SLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("policy", {"loss": "grpo", "beta": 0.2, "entropy_weight": 0.1, "temperature": 1.2, "sampler_cap": 2.0}),
}
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "kto": ("kto", {"undesirable_weight": 0.7, "beta": 0.05}),
    "top_k": ("distillation", {"loss_top_k": 5, "beta": 0.3, "temperature": 1.5}),
    "ppo": ("valued", {"value": ValueConfig(weight=0.7, clip=0.5)}),
    "dft": ("sft", {"loss": "dft"}),
    "kept": ("policy", {"loss": "grpo", "beta": 0.2, "temperature": 0.8, "loss_chunks": 2}),
    "distillation": ("distillation", {"beta": 0.3, "temperature": 1.5, "sft_weight": 0.2}),
    "copy": ("dpo", {"reference": "copy", "loss": {"sigmoid": 1.0, "aot": 0.5}, "length_alpha": 0.4}),
    "sft": ("sft", {}),
    "noise": ("sft", {"neftune_noise_alpha": 10.0}),
    "wpo": ("dpo", {"loss": "discopop", "is_weighted": True}),
    "orpo": ("orpo", {}),
    "reward": ("reward_model", {"centre": 0.1}),
    "steps": ("process_reward_model", {}),
    "cpo": ("cpo", {"loss": "simpo", "alpha": 0.1}),
    "apo": ("kto", {"loss": "apo_zero_unpaired"}),
    "kto_copy": ("kto", {"reference": "copy"}),
    "dapo": ("policy", {"delta": 3.0, "sampler_cap": None}),
    "forward_kl": ("distillation", {"beta": 0.0}),
    "reverse_kl": ("distillation", {"beta": 1.0, "loss_chunks": 3}),
    "normalised": ("distillation", {"loss_top_k": 5, "loss_add_tail": False, "sft_weight": 0.2, "loss_chunks": 3}),
    "vespo": (
        "policy",
        {"loss": "vespo", "top_entropy_quantile": 0.5, "off_policy_mask_threshold": 0.1}
        | {"vespo_k_pos": 0.1, "vespo_k_neg": 0.1, "vespo_lambda_pos": 0.01, "vespo_lambda_neg": 0.01},
    ),  # by default weights of such random policies are below 1e-4
    "gspo": ("policy", {"loss": "gspo", "beta": 0.1, "kl": "k2"}),
}
CASES = BY_DEFAULT | SLOW | FURTHER
MARKS = dict.fromkeys(SLOW, pytest.mark.slow) | dict.fromkeys(FURTHER, pytest.mark.long)
ON_STAGES = ("dpo", "grpo")  # in the gate: a formula of pairs and one of tokens, with what both need of the batch
ONE = MeshConfig()
MESHES = {"positions": MeshConfig(fsdp=2, context=2, tensor=2), "stages": MeshConfig(replica=2, stage=2)}


@cache
def packed(name: str) -> dict[str, np.ndarray]:
    """A batch of rows, the first ones nearly without anything to learn, so that parts of it differ."""
    host = dict(next(one_epoch(rows_of(TinyRun(objective=CASES[name][0])), global_batch_size=ROWS)))
    if CASES[name][0] == "valued":
        draw = np.random.default_rng(0)
        host |= {column: draw.normal(size=host["tokens"].shape).astype(np.float32) for column in OF_TOKENS}
    mask = "group_mask" if is_of_groups(name) else "step_labels" if name == "steps" else "loss_mask"
    if name == "kept":
        shape = host["tokens"].shape
        others = np.random.default_rng(0).permuted(np.tile(np.arange(MODEL.vocab_size), (*shape, 1)), axis=2)
        others = np.where(others[..., :4] == host["targets"][..., None], -1, others[..., :4])
        host[KEPT] = np.concatenate([others, host["targets"][..., None]], axis=2).astype(np.int32)
    if "loss_top_k" in CASES[name][1]:
        host |= told(host["loss_mask"], CASES[name][1]["loss_top_k"])
    host[mask] = host[mask] * ((np.arange(host[mask].shape[1]) < 1) | (np.arange(ROWS) % 2 == 1)[:, None])
    return among_empty_rows(host) if is_of_groups(name) else host


def among_empty_rows(host: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As many rows as the batch has groups, and a multiple of `ROWS`: unpacked groups then need no program of their
    own, which takes 3 s to compile."""
    num = -(-int(host["group_mask"].sum()) // ROWS) * ROWS
    places = np.random.default_rng(0).permutation(num)[: len(host["tokens"])]
    return {name: with_rows(num, places, column) for name, column in host.items()}


def with_rows(num: int, places: np.ndarray, column: np.ndarray) -> np.ndarray:
    """So many rows, the column's at these places and zeros elsewhere."""
    rows = np.zeros((num, *column.shape[1:]), column.dtype)
    rows[places] = column
    return rows


def told(mask: np.ndarray, num: int) -> dict[str, np.ndarray]:
    """What a teacher might say of learned tokens: of some fewer ids."""
    draw = np.random.default_rng(0)
    ids = draw.permuted(np.tile(np.arange(MODEL.vocab_size), (*mask.shape, 1)), axis=2)[..., :num]
    ids[(mask == 0) | (draw.random(mask.shape) < 0.2), num // 2 :] = -1
    logprobs = np.log(draw.dirichlet(np.ones(num + 1), mask.shape)[..., :num])
    return {TEACHER_IDS: ids.astype(np.int32), TEACHER_LOGPROBS: logprobs.astype(np.float32)}


def is_of_groups(name: str) -> bool:
    return objective_kind(CASES[name][0]).rows in SEGMENTS


@cache
def stepped(name: str, mesh: Mesh, grad_accum: int = 1) -> tuple[dict[str, float], Any]:
    """The metrics of a step on the packed batch, and its gradient."""
    return one_step(name, mesh, packed(name), grad_accum)


def one_step(name: str, mesh: Mesh, host: dict[str, np.ndarray], grad_accum: int = 1) -> tuple[dict[str, float], Any]:
    kind, settings = CASES[name]
    is_copied = settings.get("reference") == "copy"
    has_score = kind in ("reward_model", "process_reward_model", "valued")
    added = {"has_score": has_score, "reference": "moving" if is_copied else None}
    model = MODEL.model_copy(update=added)
    objective = objective_of(kind, model, **{"global_batch_size": len(host["tokens"]), **settings})
    shardings = state_shardings(model, GRADIENT, mesh, ("reference",) if is_copied else ())
    trained, frozen = split(jax.device_put(jax.device_get(random_params(model)), shardings.params), shardings.frozen)
    state = TrainState(jax.tree.map(jnp.copy, trained), frozen, jax.jit(GRADIENT.init)(trained), jnp.int32(0))
    step = make_train_step(objective, GRADIENT, mesh, shardings, grad_accum)
    state, metrics = step(state, shard_batch(host, mesh), held_by(objective, mesh))
    return jax.device_get(metrics), jax.device_get(state.opt_state[0].trace)


def assert_same(one: tuple[dict[str, float], Any], other: tuple[dict[str, float], Any], tolerance: float) -> None:
    """Relative to the largest number of a kind: the metrics, and the gradient."""
    assert one[0].keys() == other[0].keys() and one[0]["count"] == other[0]["count"] > 0
    for metric, value in one[0].items():
        assert other[0][metric] == pytest.approx(value, rel=10 * tolerance, abs=10 * tolerance), metric
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one[1]))
    assert scale > 1e-3
    for left, right in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
        np.testing.assert_allclose(right, left, atol=tolerance * max(scale, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*BY_DEFAULT, *(pytest.param(name, marks=pytest.mark.long) for name in SLOW | FURTHER)]
)
def test_micro_batches_are_the_whole_batch(name: str) -> None:
    mesh = build_mesh(ONE)
    assert_same(stepped(name, mesh), stepped(name, mesh, 4), ACCUMULATED)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        *(
            pytest.param(name, "positions", marks=mark)
            for name, mark in {**dict.fromkeys(BY_DEFAULT, pytest.mark.slow), **MARKS}.items()
        ),
        *(
            pytest.param(name, "stages", marks=pytest.mark.slow if name in ON_STAGES else pytest.mark.long)
            for name in CASES
        ),
    ],
)
def test_any_mesh_is_one_device(name: str, axes: str) -> None:
    assert_same(stepped(name, build_mesh(ONE)), stepped(name, build_mesh(MESHES[axes]), 2), ANYWHERE)


@pytest.mark.parametrize(
    "name",
    [
        "dpo",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("kto", "orpo", "cpo", "reward")),
    ],
)
def test_packed_groups_are_unpacked_ones(name: str) -> None:
    mesh, host = build_mesh(ONE), packed(name)
    metrics, gradient = stepped(name, mesh)
    alone, of_alone = one_step(name, mesh, unpacked(host, SEGMENTS[objective_kind(CASES[name][0]).rows]))
    del alone["num_tokens"]  # groups that the packed rows mask are not there
    assert_same(({name: metrics[name] for name in alone}, gradient), (alone, of_alone), ANYWHERE)


@pytest.mark.parametrize(
    "name", [pytest.param("top_k", marks=pytest.mark.slow), pytest.param("distillation", marks=pytest.mark.long)]
)
def test_packed_examples_are_unpacked_ones(name: str) -> None:
    mesh, host = build_mesh(ONE), packed(name)
    assert_same(stepped(name, mesh), one_step(name, mesh, apart(host)), ANYWHERE)


def apart(host: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each example in a row of its own, at its beginning."""
    rows = []
    for row, segments in enumerate(host["segment_ids"]):
        for segment in range(1, segments.max() + 1):
            where = np.flatnonzero(segments == segment)
            own = {name: np.zeros_like(column[row]) for name, column in host.items()}
            for name, column in own.items():
                column[: len(where)] = host[name][row][where]
            own["segment_ids"] = np.minimum(own["segment_ids"], 1)
            rows.append(own)
    assert len(rows) > len(host["tokens"])
    return {name: np.stack([own[name] for own in rows]) for name in host}


def unpacked(host: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Each group in a row of its own, at its beginning, and as many rows as before."""
    rows, num = [], len(host["tokens"])
    of_tokens = [name for name, column in host.items() if column.shape == host["tokens"].shape]
    for row, place in np.argwhere(host["group_mask"] > 0):
        own = {name: np.zeros_like(column[row]) for name, column in host.items()}
        for prefix in ("", "other_") if "other_tokens" in host else ("",):
            segments = host[prefix + "segment_ids"][row]
            where = np.flatnonzero((segments > place * size) & (segments <= (place + 1) * size))
            for name in of_tokens:
                if name.startswith("other_") == bool(prefix):
                    own[name][: len(where)] = host[name][row][where]
            own[prefix + "segment_ids"][: len(where)] -= place * size
        for name, column in host.items():
            if name not in of_tokens:
                own[name][0] = column[row][place]
        rows.append(own)
    assert ROWS < len(rows) <= num
    stacked = {name: np.stack([own[name] for own in rows]) for name in host}
    return {name: with_rows(num, np.arange(len(rows)), column) for name, column in stacked.items()}
