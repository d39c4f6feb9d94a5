"""Sampling against a slow NumPy reference, by distribution, and its independence of the batch."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.typing import Array
from lifecycle.inference.pages import PagePlan
from lifecycle.inference.sampling import (
    GREEDY_BELOW,
    History,
    Sampled,
    SamplingParams,
    SamplingRows,
    filter_logits,
    sample,
)
from lifecycle.inference.slots import SlotTable

VOCAB = 23
FILTER = jax.jit(filter_logits)
SAMPLE = jax.jit(sample)
ROWS = 5  # one number for all tests: each shape costs a compilation


def none(logits: Array | np.ndarray) -> History:
    """No token has been seen."""
    return History.empty(*logits.shape)


def rows(params: list[SamplingParams]) -> SamplingRows:
    table = SlotTable(len(params), PagePlan(1, (1,), {}, {}), 1, VOCAB)
    for slot, own in enumerate(params):
        table.open(slot, own, own.seed or 0, ())
    return table.decode_rows(1).sampling


def sampled(
    logits: Any, params: list[SamplingParams], positions: Any, want_top: bool = False, num_kept: int = 0, **seen: Any
) -> Sampled:
    """What these rows get, with greedy ones of zeros behind them; `seen`: what their `History` has."""
    num, size = np.shape(logits)
    behind = ROWS - num
    sampling = rows([*params, *[SamplingParams(temperature=0.0)] * behind])
    if num_kept:
        sampling = replace(sampling, kept=jnp.zeros((ROWS, num_kept), jnp.int32))
    padded, *held = (np.pad(array, ((0, behind), (0, 0))) for array in (logits, *seen.values()))
    history = replace(History.empty(ROWS, size), **dict(zip(seen, map(jnp.asarray, held), strict=True)))
    found = SAMPLE(padded, sampling, np.pad(positions, (0, behind)), np.array(want_top), history)
    return jax.tree.map(lambda array: array[:num], jax.device_get(found))


def test_a_recorded_draw_is_what_its_token_came_from() -> None:
    """The ids that the filters keep, the token's log-probability among them, and the token that is drawn without a
    record; of ids that tie for the last place the first."""
    logits = np.random.default_rng(1).normal(size=(4, VOCAB)).astype(np.float32)
    logits[3] = np.where(np.arange(VOCAB) == 7, 1.0, 0.0)
    each = [
        SamplingParams(temperature=0.6, top_k=9, top_p=0.7, seed=1),
        SamplingParams(top_k=4, seed=2),
        SamplingParams(temperature=0.0, seed=3),
        SamplingParams(top_k=3, seed=4),
    ]
    found = sampled(logits, each, [5] * 4, num_kept=9)
    assert found.drawn is not None
    for row, own in enumerate(each[:2]):
        kept, _ = reference_kept(logits[row], own)
        ids = np.asarray(found.drawn.ids[row])
        assert sorted(ids[ids >= 0].tolist()) == np.flatnonzero(kept).tolist()
        scaled = np.where(kept, logits[row] / own.temperature, -np.inf)
        exact = scaled[int(found.token[row])] - np.log(np.exp(scaled).sum())
        assert float(found.drawn.logprob[row]) == pytest.approx(exact, abs=1e-5)
    assert found.token[2] == logits[2].argmax() and found.drawn.logprob[2] == 0
    assert found.drawn.ids[3, :9].tolist() == [7, 0, 1, 2, 3, 4, 5, 6, 8]  # three and their ties, cut to nine
    assert found.token[:3].tolist() == sampled(logits, each, [5] * 4).token[:3].tolist()


def reference_kept(logits: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, float]:
    """Which tokens are kept, by sorting in float64, and the distance of the top-p sum from a decision."""
    scaled = (logits.astype(np.float64) - logits.max()) / max(params.temperature, GREEDY_BELOW)
    probs = np.exp(scaled)
    kept = np.ones(len(logits), bool)
    margin = 1.0
    order = np.argsort(-scaled, kind="stable")
    if params.top_k:
        kept &= scaled >= scaled[order[min(params.top_k, len(logits)) - 1]]
    if params.top_p < 1:
        inside = [i for i in order if kept[i]]
        mass = np.cumsum(probs[inside]) / probs[inside].sum()
        last = int(np.searchsorted(mass, params.top_p))
        margin = float(np.abs(mass - params.top_p).min())
        kept &= scaled >= scaled[inside[min(last, len(inside) - 1)]]
    if params.min_p:
        kept &= probs >= params.min_p
        margin = min(margin, float(np.abs(probs - params.min_p).min()))
    if params.typical_p < 1:
        left = np.where(kept, probs, 0) / probs[kept].sum()
        surprise = -np.log(left, where=left > 0, out=np.full(len(left), -np.inf))
        far = np.where(left > 0, np.abs(surprise - (left[left > 0] * surprise[left > 0]).sum()), np.inf)
        inside = [i for i in np.argsort(far, kind="stable") if kept[i]]
        mass = np.cumsum(left[inside])
        last = far[inside[min(int(np.searchsorted(mass, params.typical_p)), len(inside) - 1)]]
        margin = min(margin, float(np.abs(mass - params.typical_p).min()))
        others = np.abs(far[kept] - last)
        margin = min(margin, float(others[others > 0].min(initial=1.0)))
        kept = kept & (far <= last)
    return kept, margin


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=VOCAB, max_size=VOCAB),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.integers(0, VOCAB + 5),
    st.floats(0.01, 1.0),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from([1.0, 0.9, 0.2]),
)
def test_filters_keep_what_a_sorting_reference_keeps(
    logits: list[int], temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p)
    array = np.array(logits, np.float32) / 8
    kept, margin = reference_kept(array, params)
    found = np.asarray(FILTER(jnp.array(array)[None], rows([params])))[0]
    assert np.isfinite(found).any()
    if margin > 1e-5:  # nearer than float32 can tell, both answers are right
        np.testing.assert_array_equal(np.isfinite(found), kept)


def test_draws_follow_the_filtered_distribution() -> None:
    """Chi-square over 20,000 draws at different positions; 1e-4 quantile of 7 degrees of freedom: 29.9."""
    logits = jnp.array(np.random.default_rng(0).normal(size=12), jnp.float32)
    params = SamplingParams(temperature=0.8, top_k=8, seed=11)
    count = 20_000
    given = logits[None], rows([params])
    draw = jax.vmap(lambda position: sample(*given, position[None], jnp.array(False), none(given[0])).token[0])
    tokens = np.asarray(jax.jit(draw)(jnp.arange(count)))
    kept, _ = reference_kept(np.asarray(logits), params)
    expected = np.where(kept, np.exp(np.asarray(logits, np.float64) / 0.8), 0)
    expected *= count / expected.sum()
    observed = np.bincount(tokens, minlength=12)
    assert (observed[~kept] == 0).all()
    assert (((observed - expected) ** 2)[kept] / expected[kept]).sum() < 29.9


def test_a_row_does_not_depend_on_the_batch_around_it() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, VOCAB)).astype(np.float32)
    settings_ = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, seed=-5),
        SamplingParams(temperature=0.7, top_p=0.8, top_k=9, seed=2**63 + 1),
        SamplingParams(temperature=1.3, min_p=0.1, seed=3),
    ]
    positions = [5, 6, 7, 8]
    together = sampled(logits, settings_, positions, want_top=True)
    for i, own in enumerate(settings_):
        others = [own, *[SamplingParams(temperature=0.0)] * 3]
        alone = sampled(logits[[i, 3, 1, 2]], others, [positions[i]] * 4)
        assert int(alone.token[0]) == int(together.token[i])
        assert float(alone.logprob[0]) == float(together.logprob[i])


def test_logprobs_are_the_models_own_and_top_ones_are_sorted() -> None:
    logits = np.random.default_rng(2).normal(size=(1, VOCAB)).astype(np.float32)
    found = sampled(logits, [SamplingParams(temperature=0.5, top_k=1, seed=0)], [3], want_top=True)
    expected = np.asarray(jax.nn.log_softmax(logits))[0]
    assert int(found.token[0]) == expected.argmax()
    np.testing.assert_allclose(found.logprob[0], expected.max(), rtol=1e-6)
    np.testing.assert_array_equal(found.top_ids[0], np.argsort(-expected)[:20])
    np.testing.assert_allclose(found.top_logprobs[0], np.sort(expected)[::-1][:20], rtol=1e-6)


def test_a_small_vocabulary_has_fewer_alternatives_than_asked_for() -> None:
    found = sampled(np.zeros((1, 4), np.float32), [SamplingParams(temperature=0.0)], [1], want_top=True)
    assert found.top_ids.shape == (1, 20)
    assert np.isneginf(found.top_logprobs[0, 4:]).all()


def test_extreme_temperatures_give_a_token_and_not_nan() -> None:
    logits = np.array([[0.0, 80.0, -80.0, 79.0]], np.float32)
    for temperature in (1e-30, 1e-6, 1e-4, 1e4):
        params = SamplingParams(temperature=temperature, top_p=0.9, seed=1)
        found = sampled(logits, [params], [1])
        assert 0 <= int(found.token[0]) < 4
        assert temperature > 1 or int(found.token[0]) == 1


def test_the_penalty_divides_positive_and_multiplies_negative_logits_of_what_was_seen() -> None:
    """transformers' `RepetitionPenaltyLogitsProcessor`; a row without a penalty is as it was."""
    logits = np.array([[3.0, 2.9, -1.0, -1.1], [3.0, 2.9, -1.0, -1.1], [-9.0, -9.0, -1.0, -1.1]], np.float32)
    seen = np.array([[True, False, True, False]] * 3)
    params = [SamplingParams(temperature=0.0, repetition_penalty=penalty) for penalty in (1.5, 1.0, 1.2)]
    found = sampled(logits, params, [1, 1, 1], asked=seen)
    np.testing.assert_array_equal(found.token, [1, 0, 3])  # 3 / 1.5 = 2 is below 2.9, -1 x 1.2 below -1.1
    np.testing.assert_allclose(found.logprob, np.asarray(jax.nn.log_softmax(logits))[[0, 1, 2], found.token], rtol=1e-6)


def test_what_was_made_is_penalised_once_and_for_each_time_after_biases() -> None:
    """vLLM's order: biases, the repetition penalty, then these two. What only the prompt has is not penalised."""
    logits = np.array([[3.0, 2.0, 1.0, -1.0]] * 5, np.float32)
    made = np.array([[2, 0, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], np.int32)
    params = [
        SamplingParams(temperature=0.0, presence_penalty=1.5),
        SamplingParams(temperature=0.0, frequency_penalty=0.9, presence_penalty=0.5),
        SamplingParams(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0),
        SamplingParams(temperature=0.0, logit_bias=((3, 4.5), (0, -100.0))),
        SamplingParams(temperature=0.0, logit_bias=((0, 3.0),), repetition_penalty=2.0, presence_penalty=0.5),
    ]
    found = sampled(logits, params, range(5), asked=made > 0, made=made)
    # 3 - 1.5 < 2; 3 - 2.3 and 2 - 1.4 < 1; unseen: 3; -1 + 4.5 > 2; (3 + 3) / 2 - 0.5 > 2
    np.testing.assert_array_equal(found.token, [1, 2, 0, 3, 0])
    np.testing.assert_allclose(found.logprob, jax.nn.log_softmax(logits)[np.arange(5), found.token], rtol=1e-6)


@pytest.mark.parametrize("top_p", [5e-324, 1e-40, 1e-38, 1e-10])
def test_the_likeliest_token_always_survives(top_p: float) -> None:
    """Also where top_p, or its product with the sum, is 0 in float32."""
    logits = np.array([[0.0, 3.0, -2.0, 2.0]], np.float32)
    params = SamplingParams(top_p=top_p, top_k=2**31 - 1, min_p=1.0, seed=1)
    assert np.isfinite(FILTER(logits, rows([params]))).tolist() == [[False, True, False, False]]
    assert sampled(logits, [params], [1]).token == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e300},
        {"top_p": 0},
        {"top_k": -1},
        {"top_k": 2**31},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"typical_p": 0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": ((-1, 0.0),)},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": tuple((n, 1.0) for n in range(301))},
        {"bad_words": ("",)},
        {"bad_words": ("a",) * 65},
        {"bad_words_ids": ((),)},
        {"bad_words_ids": ((1, -1),)},
        {"bad_words_ids": (tuple(range(17)),)},
        {"min_tokens": -1},
        {"x": 1},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingParams(**bad)


def test_several_bits_of_a_threshold_at_once_are_those_of_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerators decide them."""
    own = rows([SamplingParams(top_k=k, top_p=p, temperature=1.0) for k, p in ((3, 1.0), (0, 0.4), (7, 0.9), (1, 0.1))])
    logits = jnp.asarray(np.random.default_rng(5).normal(size=(4, VOCAB)) * 3, jnp.float32)
    monkeypatch.setattr("lifecycle.inference.sampling.platform", lambda: "tpu")
    np.testing.assert_array_equal(jax.jit(lambda x: filter_logits(x, own))(logits), FILTER(logits, own))
