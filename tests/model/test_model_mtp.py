"""Prediction modules: against the formula in NumPy, document by document, and the decoder as if there were none."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError
from lifecycle.model.cache import init_cache
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import forward_flops_per_token, num_active_params, num_params
from lifecycle.model.decoder import forward
from lifecycle.model.mtp import ahead, cached_layer
from lifecycle.model.params import abstract_params, parameters
from lifecycle.model.prediction import forward_modules, module_step
from lifecycle.parallel.axes import MeshConfig
from lifecycle.stages.checks import check_sizes
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import TinyRun, objective_of
from lifecycle.training.freeze import frozen_part
from lifecycle.training.preference import DpoConfig

MODEL = ModelConfig(
    vocab_size=24, d_model=16, d_ff=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, max_seq_len=16,
    compute_dtype="float32", num_mtp_modules=2,
)  # fmt: skip
WEIGHT = 0.3
LENGTHS = ((5, 4), (12,), (1, 2, 7))  # of the rows' documents; what is left of twelve positions is padding
LENGTH = 12

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


def batch_of(seed: int = 0) -> dict[str, Any]:
    """Rows whose documents end in them, except for the one that fills its row: it goes on with a target."""
    draw = np.random.default_rng(seed)
    shape = len(LENGTHS), LENGTH
    following = draw.integers(0, MODEL.vocab_size, (shape[0], LENGTH + 1)).astype(np.int32)
    positions, segments, has_target = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for segment, length in enumerate(lengths, 1):
            positions[row, at : at + length], segments[row, at : at + length] = np.arange(length), segment
            has_target[row, at : at + length - (length < LENGTH)] = True
            at += length
    return {
        "tokens": following[:, :-1],
        "targets": np.where(has_target, following[:, 1:], 0),
        "positions": positions,
        "segment_ids": segments,
        "loss_mask": (has_target & (draw.random(shape) < 0.8)).astype(np.float32),
    }


def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + MODEL.norm_eps) * scale


def rotated(x: np.ndarray) -> np.ndarray:
    half = MODEL.head_dim // 2
    angles = np.arange(len(x))[:, None, None] * MODEL.rope_theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def block(w: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """A layer on one document, `[L, D]`."""
    attention, fed = w["attention"], w["feed_forward"]
    seen = norm(x, w["attention_norm"]["scale"])
    q, k, v = ((seen @ attention[name]).reshape(len(x), -1, MODEL.head_dim) for name in "qkv")
    scores = np.einsum("ihd,jd->hij", rotated(q), rotated(k)[:, 0]) / np.sqrt(MODEL.head_dim)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    x = x + np.einsum("hij,jd->ihd", shares, v[:, 0]).reshape(len(x), -1) @ attention["o"]
    seen = norm(x, w["feed_forward_norm"]["scale"])
    gate = seen @ fed["gate"]
    return x + (gate / (1 + np.exp(-gate)) * (seen @ fed["up"])) @ fed["down"]


def nll(params: dict[str, Any], hidden: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> float:
    logits = hidden @ params["head"].T
    normaliser = np.log(np.exp(logits).sum(-1))
    return float((mask * (normaliser - logits[np.arange(len(targets)), targets])).sum())


def formula(params: dict[str, Any], batch: dict[str, np.ndarray]) -> tuple[float, list[float], list[float]]:
    """(the next token's loss, each module's loss, each module's count): sums over all documents, each alone
    (DeepSeek-V3, equations 21 to 25)."""
    main, losses, counts = 0.0, [0.0] * MODEL.num_mtp_modules, [0.0] * MODEL.num_mtp_modules
    for row, lengths in enumerate(LENGTHS):
        for segment in range(1, len(lengths) + 1):
            own = batch["segment_ids"][row] == segment
            tokens, targets, mask = (batch[name][row][own] for name in ("tokens", "targets", "loss_mask"))
            x = block(jax.tree.map(lambda w: w[0], params["blocks"]["0+1"]), params["embed"][tokens])
            x = norm(x, params["norm"]["scale"])
            main += nll(params, x, targets, mask)
            for depth in range(1, min(MODEL.num_mtp_modules, len(tokens) - 1) + 1):
                w = jax.tree.map(lambda stack, depth=depth: stack[depth - 1], params["mtp"]["0+1"])
                embedded = norm(params["embed"][tokens[depth:]], w["embed_norm"]["scale"])
                hidden = norm(x[: len(tokens) - depth], w["hidden_norm"]["scale"])
                x = block(w["block"], np.concatenate([embedded, hidden], -1) @ w["projection"])
                out = norm(x, w["norm"]["scale"])
                losses[depth - 1] += nll(params, out, targets[depth:], mask[depth:])
                counts[depth - 1] += float(mask[depth:].sum())
    return main, losses, counts


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    """Three times the usual size, so that every part of a module matters."""
    return jax.tree.map(lambda x: 3 * x, random_params(MODEL))


@pytest.mark.slow
def test_losses_and_gradients_are_the_formulas(params: dict[str, Any]) -> None:
    batch = batch_of()
    objective = objective_of("next_token", MODEL, mtp_weight=WEIGHT, remat={})

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def learned(params: Any) -> Any:
        sums = objective(params, batch)
        return sums.minimised, sums

    (minimised, sums), grads = learned(params)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    main, losses, counts = formula(exact, batch)
    assert sums.loss == pytest.approx(main, rel=1e-5) and sums.count == batch["loss_mask"].sum()
    assert minimised == pytest.approx(main + WEIGHT * np.mean(losses), rel=1e-5)
    assert sums.metrics == pytest.approx({f"mtp_loss_{k}": loss for k, loss in enumerate(losses, 1)}, rel=1e-5)
    assert sums.counts == {f"mtp_loss_{k}": count for k, count in enumerate(counts, 1)}
    assert 0 < counts[1] < counts[0] < sums.count

    def minimised_at(step: float, direction: Any) -> float:
        main, losses, _ = formula(jax.tree.map(lambda x, d: x + step * d, exact, direction), batch)
        return main + WEIGHT * float(np.mean(losses))

    draw = np.random.default_rng(1)
    for name in exact:  # the gradient along a random direction in each part of the parameters
        direction = jax.tree.map(np.zeros_like, exact)
        direction[name] = jax.tree.map(lambda x: draw.standard_normal(x.shape), exact[name])
        slope = (minimised_at(1e-5, direction) - minimised_at(-1e-5, direction)) / 2e-5
        found = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((g * d).sum()), grads, direction)))
        size = float(np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads[name]))))
        assert found == pytest.approx(slope, abs=1e-4 * size), name
        assert size > 1


@pytest.mark.long
def test_a_module_with_a_cache_computes_what_it_does_of_whole_rows(params: dict[str, Any]) -> None:
    """In parts; what a draft has left in the cache is overwritten, and a position that is padding writes nothing."""
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (2, LENGTH)).astype(np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    row = {"tokens": tokens, "targets": tokens, "positions": positions, "segment_ids": np.ones_like(tokens)}
    row = jax.tree.map(jnp.asarray, row | {"loss_mask": np.ones(tokens.shape, np.float32)})
    hidden = forward(MODEL, params, row["tokens"], row["positions"])
    (expected,), _ = forward_modules(MODEL, params, hidden, [ahead(row, 1)])
    module, cache = jax.tree.map(lambda stack: stack[0], params["mtp"]["0+1"]), init_cache(cached_layer(MODEL), 2, 16)
    for begin, end, wrong in ((0, 5, 0), (5, 8, 2), (6, 9, 0), (9, 10, 0)):
        following = (tokens[:, begin + 1 : end + 1] + (np.arange(begin, end) >= end - wrong)) % MODEL.vocab_size
        places = np.where([[True], [begin != 6]], positions[:, begin:end], 16)
        given = hidden[:, begin:end], jnp.asarray(following), jnp.asarray(places)
        state, cache = module_step(MODEL, module, params, *given, cache)
        right = end - wrong - begin
        np.testing.assert_allclose(state[0, :right], expected[0, begin : begin + right], rtol=1e-4, atol=1e-5)


def test_without_weight_a_step_computes_what_it_computes_without_modules(params: dict[str, Any]) -> None:
    batch, trunk = batch_of(), {name: x for name, x in params.items() if name != "mtp"}
    silent = objective_of("next_token", MODEL)
    programs = [
        jax.make_jaxpr(lambda p: silent(p | {"mtp": params["mtp"]}, batch))(trunk),
        jax.make_jaxpr(lambda p: objective_of("next_token", MODEL.trunk)(p, batch))(trunk),
    ]
    assert str(programs[0]) == str(programs[1])
    split = (jax.random.key_data(jax.random.split(jax.random.key(3), num)) for num in (2, 2 + MODEL.num_mtp_modules))
    assert np.array_equal(next(split), next(split)[:2])  # so the decoder's initial values are the same too


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=3, max_size=3), st.integers(1, 3))
def test_a_module_sees_tokens_of_its_document_only(rows: list[list[int]], depth: int) -> None:
    segments = np.zeros((3, LENGTH), np.int32)
    for row, lengths in enumerate(rows):
        ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:LENGTH]
        segments[row, : len(ids)] = ids
    place = np.arange(3 * LENGTH, dtype=np.int32).reshape(3, LENGTH)
    batch = {"tokens": place, "targets": 100 + place, "positions": place, "segment_ids": segments}
    arrays = jax.tree.map(jnp.asarray, batch | {"loss_mask": np.ones((3, LENGTH), np.float32)})
    moved = jax.device_get(ahead(arrays, depth))
    for row, at in np.ndindex(3, LENGTH):
        there = at + depth
        if segments[row, at] and there < LENGTH and segments[row, there] == segments[row, at]:
            assert (
                moved["tokens"][row, at] == place[row, there] and moved["targets"][row, at] == 100 + place[row, there]
            )
            assert moved["segment_ids"][row, at] == segments[row, at] and moved["loss_mask"][row, at] == 1
        else:
            assert moved["segment_ids"][row, at] == 0 and moved["loss_mask"][row, at] == 0
    assert np.array_equal(moved["positions"], place)


def test_parameters_and_flops_are_counted() -> None:
    assert num_params(MODEL) == sum(leaf.size for leaf in jax.tree.leaves(abstract_params(MODEL)))
    own = jax.tree.leaves(parameters(MODEL)["mtp"])
    assert all(known.shape[0] == 2 and known.is_stacked for known in own)
    assert num_params(MODEL) - num_params(MODEL.trunk) == sum(np.prod(known.shape) for known in own)
    assert num_active_params(MODEL) == num_params(MODEL.trunk)
    products = sum(np.prod(known.shape) for known in own if known.is_matrix)
    scores = 2 * 2 * 8 * 2 * 10 / 2  # modules, heads, head_dim, two products, half of ten keys
    more = 2 * (products + scores + 2 * MODEL.vocab_size * MODEL.d_model)
    assert forward_flops_per_token(MODEL, 10) - forward_flops_per_token(MODEL.trunk, 10) == more


def test_a_stage_that_does_not_train_them_freezes_them() -> None:
    plain = TinyRun().train()
    train = plain.model_copy(update={"mtp_weight": 0.1, "freeze": ("embed",)})
    assert train.frozen(MODEL) == ("embed",) and train.computed(MODEL) == MODEL
    assert plain.frozen(MODEL) == ("mtp",) and plain.computed(MODEL) == MODEL.trunk and plain.frozen(MODEL.trunk) == ()
    assert DpoConfig(steps=3, seq_len=8, global_batch_size=1).frozen(MODEL) == ("mtp",)
    assert frozen_part(MODEL, ("mtp",)) == {"mtp": abstract_params(MODEL)["mtp"]}
    assert set(frozen_part(MODEL, ("mtp.*.projection",))["mtp"]["0+1"]) == {"projection"}
    with pytest.raises(ConfigError, match=r"'mtp\.0' matches 1 of 2 layers .*; name all of them: mtp\.\*"):
        frozen_part(MODEL, ("mtp.0",))


def test_a_weight_without_modules_and_rows_too_short_for_them_are_refused() -> None:
    train = TinyRun().train().model_copy(update={"mtp_weight": 0.3, "seq_len": 2})
    with pytest.raises(ValueError, match=r"train\.a\.mtp_weight=0\.3 .* has none; set model\.num_mtp_modules=1"):
        check_sizes("train.a", train, MODEL.trunk, MeshConfig())
    with pytest.raises(ValueError, match=r"train\.a\.seq_len=2: .*num_mtp_modules=2 predicts nothing"):
        check_sizes("train.a", train, MODEL, MeshConfig())
    check_sizes("train.a", train.model_copy(update={"seq_len": 3}), MODEL, MeshConfig())
