"""Losses, gradients and metrics against TRL's, in float32 on the same ids (`tests/golden/make_trl_golden.py`).

The model runs once for all cases: a formula's gradient in the tokens' statistics is led back to the parameters, by way
of the hidden states and the head, so that one program has the model's gradient for all temperatures and formulas.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lifecycle.kernels.token_statistics import TokenStatistics
from lifecycle.kernels.top_logprobs import Among, top_logprobs
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward_train
from lifecycle.model.embedding import head
from lifecycle.model.params import Params
from lifecycle.testing.tiny_rows import Example
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.batches import one_epoch
from lifecycle.training.config import TrainConfig
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.group_rows import Group, GroupRows
from lifecycle.training.likelihood import SftConfig
from lifecycle.training.objectives.distillation import distillation
from lifecycle.training.objectives.likelihoods import GroupLikelihoods, TokenLikelihoods
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.objectives.registry import PACKAGE, SEGMENTS, ObjectiveKind, objective_kind
from lifecycle.training.objectives.reward_model import reward_model
from lifecycle.training.objectives.sums import Sums
from lifecycle.training.packing import RowSource, permutation
from lifecycle.training.policy import PolicyConfig
from lifecycle.training.preference import (
    CpoConfig,
    DpoConfig,
    KtoConfig,
    OrpoConfig,
    ProcessRewardModelConfig,
    RewardModelConfig,
)
from lifecycle.training.reference import OF_OTHERS, REFERENCE, ReferenceRows
from lifecycle.training.step_rows import StepRows
from lifecycle.training.taught import TEACHER_IDS, TEACHER_LOGPROBS
from lifecycle.training.wrapped_rows import WrappedRows
from lifecycle.weights.published import load_config, load_weights
from tests.golden.family_weights import write_model

LOSS, NORM = 1e-4, 1e-3  # relative
GOLDEN = Path(__file__).parents[1] / "golden"
TRL: dict[str, Any] = json.loads((GOLDEN / "trl.json").read_text())
SIZES: dict[str, Any] = {"steps": 1, "seq_len": 48, "global_batch_size": 8}

# TRL's setting and value to ours.
NAMES: dict[str, str] = {
    "f_divergence_type": "divergence", "f_alpha_divergence_coef": "divergence_alpha", "use_weighting": "is_weighted",
    "ld_alpha": "length_alpha", "cpo_alpha": "sft_weight", "simpo_gamma": "gamma", "loss_type": "loss", "kind": "loss",
    "importance_sampling_level": "level", "entropy_coef": "entropy_weight",
}  # fmt: skip
CONFIGS: dict[str, type[TrainConfig]] = {
    "dpo": DpoConfig, "orpo": OrpoConfig, "cpo": CpoConfig, "kto": KtoConfig, "sft": SftConfig,
    "policy": PolicyConfig,
}  # fmt: skip


def settings_of(case: Mapping[str, Any]) -> TrainConfig:
    """The case's settings by our names."""
    given = dict(case["settings"])
    if case["kind"] == "policy" and "beta" in given:
        given.setdefault("use_bias_correction_kl", False)  # as `trl_losses.py` has it
    own: dict[str, Any] = {"objective": "policy", "max_completion_tokens": 16} if case["kind"] == "policy" else {}
    if "loss_types" in given:
        types = given.pop("loss_types")
        own["loss"] = dict(zip(types, given.pop("loss_weights", [1.0] * len(types)), strict=True))
    own |= {NAMES.get(name, str(name)): value for name, value in given.items()}
    return CONFIGS[case["kind"]](**SIZES, **own)


def example(sequence: Mapping[str, Any]) -> Example:
    size = len(sequence["ids"])
    return Example(sequence["ids"], [i >= sequence["prompt"] for i in range(size)])


def pair_batch(length_alpha: float | None) -> dict[str, np.ndarray]:
    table = TRL["reference_pairs"] if length_alpha is None else TRL["reference_pairs_ld"][str(length_alpha)]
    rows = GroupRows([Group([example(side) for side in pair]) for pair in TRL["pairs"]], SIZES["seq_len"], seed=0)
    return whole_batch(ReferenceRows(rows, {REFERENCE: np.array(table, np.float32)}))


def answer_batch() -> dict[str, np.ndarray]:
    listed = zip(TRL["answers"], TRL["labels"], TRL["others"], strict=True)
    groups = [Group([example(answer)], {"label": [float(label)]}, [example(other)]) for answer, label, other in listed]
    table = {REFERENCE: TRL["reference_answers"], OF_OTHERS: TRL["reference_others"]}
    columns = {name: np.array(values, np.float32)[:, None] for name, values in table.items()}
    return whole_batch(ReferenceRows(GroupRows(groups, SIZES["seq_len"], seed=0), columns))


def policy_batch() -> dict[str, np.ndarray]:
    listed = zip(TRL["answers"], TRL["advantages"], strict=True)
    groups = [Group([example(answer)], {"advantages": [value]}) for answer, value in listed]
    batch = whole_batch(GroupRows(groups, SIZES["seq_len"], seed=0))
    for column, values in {"old_logprobs": TRL["old"], "reference_logprobs": TRL["reference_tokens"]}.items():
        batch[column] = np.zeros(batch["tokens"].shape, np.float32)
        for row, place in np.argwhere(batch["group_mask"] > 0):
            where = (batch["segment_ids"][row] == place + 1) & (batch["loss_mask"][row] > 0)
            batch[column][row, where] = values[batch["group_ids"][row, place]]
    return batch


def whole_batch(rows: RowSource) -> dict[str, np.ndarray]:
    """All rows, packed."""
    assert rows.num_rows < len(TRL["pairs"])  # packed
    batch = next(one_epoch(rows, global_batch_size=SIZES["global_batch_size"]))
    return batch | {"row": np.arange(SIZES["global_batch_size"])}


def logged(sums: Sums) -> dict[str, float]:
    """The metrics of a whole batch."""
    return {name: float(value) for name, value in (sums.metric_means(sums.count) | sums.extremes).items()}


@dataclass(frozen=True)
class Llama:
    """The golden model with its forward pass, compiled once for all rows."""

    config: ModelConfig
    params: Params
    seen: Callable[..., tuple[jax.Array, jax.Array]]  # hidden states and head
    statistics: Callable[..., TokenStatistics]  # of both
    pulled_back: Callable[..., jax.Array]  # the norm of the parameters' gradient, from one in both

    def of(self, batch: Any, temperature: float = 1.0) -> TokenStatistics:
        rows = rows_of(batch)
        return self.statistics(self.seen(self.params, rows), rows["targets"], temperature=temperature)

    def norm_of(self, batch: Any, grads: TokenStatistics, temperature: float) -> float:
        """Of the parameters' gradient, from one in the statistics."""
        rows = rows_of(batch)
        of_seen = led_to(self.statistics, self.seen(self.params, rows), rows["targets"], grads, temperature)
        return float(self.pulled_back(self.params, rows, of_seen))


@partial(jax.jit, static_argnums=(0, 4))
def led_to(function: Any, seen: Any, targets: jax.Array, grads: TokenStatistics, temperature: float) -> Any:
    return jax.vjp(lambda both: function(both, targets, temperature=temperature), seen)[1](grads)[0]


def rows_of(batch: Any) -> dict[str, Any]:
    return {name: batch[name] for name in ("tokens", "targets", "positions", "segment_ids")}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    folder = tmp_path_factory.mktemp("llama2")
    write_model(GOLDEN / "families/llama2", folder)
    config = load_config(folder)

    def seen(params: Params, rows: Any) -> tuple[jax.Array, jax.Array]:
        hidden, _ = forward_train(config, params, rows["tokens"], rows["positions"], rows["segment_ids"])
        return hidden, head(config, params)

    @partial(jax.jit, static_argnames="temperature")
    def statistics(both: Any, targets: jax.Array, temperature: float) -> TokenStatistics:
        hidden, table = both
        tokens = TokenLikelihoods({"targets": targets}, hidden, table, config.logits_soft_cap, 1)
        return tokens.statistics(temperature, wanted=jnp.ones(targets.shape))

    @jax.jit
    def pulled_back(params: Params, rows: Any, grads: Any) -> jax.Array:
        return optax.global_norm(jax.vjp(lambda p: seen(p, rows), params)[1](grads)[0])

    return Llama(config, load_weights(config, folder), jax.jit(seen), statistics, pulled_back)


def likelihoods(batch: Any, size: int | None, llama: Llama, found: TokenStatistics) -> Any:
    """What a formula sees, with these statistics of the learned rows."""

    def forward(rows: Any) -> Any:
        seen = found if rows["tokens"] is batch["tokens"] else llama.of(rows)
        return SimpleNamespace(statistics=lambda temperature, wanted: seen)

    if size is not None:
        return GroupLikelihoods(batch, size, forward)
    mask = jnp.asarray(batch["loss_mask"])
    sums = [(values * mask).sum() for values in (-found.logprobs, found.entropies, found.is_top1)]
    return SimpleNamespace(mask=mask, nll_and_metrics=lambda z_weight: sums, statistics=lambda: found)


def reward_batch(margins: list[float]) -> dict[str, np.ndarray]:
    values: list[dict[str, Any]] = [{"margin": [m, m]} for m in margins] or [{}] * len(TRL["pairs"])
    groups = [Group([example(side) for side in pair], own) for pair, own in zip(TRL["pairs"], values, strict=True)]
    return whole_batch(GroupRows(groups, SIZES["seq_len"], seed=0))


@pytest.fixture(scope="module")
def scored(llama: Llama) -> Callable[[RewardModelConfig, Any], tuple[float, float, dict[str, float]]]:
    """Loss, gradient norm and metrics of the reward model: the trunk with the golden score, packed."""
    score = jnp.array(TRL["score"])

    def found(settings: RewardModelConfig, margins: Any) -> tuple[float, float, dict[str, float]]:
        batch: Any = {column: jnp.asarray(values) for column, values in reward_batch(margins).items()}
        hidden, table = llama.seen(llama.params, rows_of(batch))

        def loss(hidden: jax.Array, score: jax.Array) -> tuple[jax.Array, Any]:
            tokens = TokenLikelihoods(batch, hidden, table, None, 1, score)
            sums = reward_model(settings, GroupLikelihoods(batch, 2, lambda _: tokens), {})
            return sums.loss / sums.count, sums

        (value, sums), (of_hidden, of_score) = jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, score)
        of_params = llama.pulled_back(llama.params, rows_of(batch), (of_hidden, jnp.zeros_like(table)))
        return float(value), float(jnp.hypot(of_params, jnp.linalg.norm(of_score))), logged(sums)

    return found


@pytest.mark.parametrize("name", TRL["rewards"])
def test_reward_models_are_trls(name: str, scored: Any) -> None:
    case = TRL["rewards"][name]
    settings = RewardModelConfig(**SIZES, centre=case["settings"].get("centre", 0.0))
    loss, norm, means = scored(settings, TRL["margins"] if "margin" in case["settings"] else [])
    assert loss == pytest.approx(case["loss"], rel=LOSS) and norm == pytest.approx(case["grad_norm"], rel=NORM)
    assert means == pytest.approx(case["metrics"], rel=1e-3, abs=1e-5)


@pytest.fixture(scope="module")
def distilled(
    llama: Llama, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[DistillationConfig], tuple[float, float, dict[str, float]]]:
    """Loss, gradient norm and metrics of distillation from the golden Gemma 2, packed. Both models run once; the
    formula's gradient in hidden states and head is led back to the parameters."""
    folder = tmp_path_factory.mktemp("gemma2")
    write_model(GOLDEN / "families/gemma2", folder)
    config = load_config(folder)
    batch: Any = {column: jnp.asarray(values) for column, values in answer_batch().items()}
    rows = rows_of(batch)

    @jax.jit
    def seen(params: Params) -> tuple[jax.Array, jax.Array]:
        hidden, _ = forward_train(config, params, rows["tokens"], rows["positions"], rows["segment_ids"])
        return hidden, head(config, params)

    def predictions(model: ModelConfig, hidden: jax.Array, table: jax.Array) -> TokenLikelihoods:
        return TokenLikelihoods(batch, hidden, table, model.logits_soft_cap, 1)

    teacher = predictions(config, *seen(load_weights(config, folder)))
    student = llama.seen(llama.params, rows)
    is_learned = batch["loss_mask"] > 0

    def with_ids(settings: DistillationConfig) -> dict[str, Any]:
        """The batch, with the teacher's likeliest ids if the settings ask for some."""
        if settings.loss_top_k is None:
            return batch
        hidden, table = teacher.hidden, teacher.table
        asked = settings.loss_top_k, is_learned, Among(settings.temperature), teacher.soft_cap
        ids, logprobs = top_logprobs(hidden, table, *asked)
        return batch | {TEACHER_IDS: jnp.where(is_learned[..., None], ids, -1), TEACHER_LOGPROBS: logprobs}

    def found(settings: DistillationConfig) -> tuple[float, float, dict[str, float]]:
        told = with_ids(settings)

        def loss(hidden: jax.Array, table: jax.Array) -> tuple[jax.Array, Any]:
            own = replace(predictions(llama.config, hidden, table), teacher=teacher, batch=told)
            sums = distillation(settings, own, {})
            return sums.loss / sums.count, sums

        (value, sums), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*student)
        return float(value), float(llama.pulled_back(llama.params, rows, grads)), logged(sums)

    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if "_0.7" in n else []) for n in TRL["distillation"]]
)
def test_distillation_is_trls(name: str, distilled: Any) -> None:
    case = TRL["distillation"][name]
    loss, norm, means = distilled(DistillationConfig(**SIZES, teacher="gemma2", **case["settings"]))
    assert loss == pytest.approx(case["loss"], rel=LOSS) and norm == pytest.approx(case["grad_norm"], rel=NORM)
    assert means == pytest.approx(case["metrics"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if "_2.0_5_" in n else [pytest.mark.long]) for n in TRL["few_ids"]]
)
def test_distillation_by_few_ids_is_trls(name: str, distilled: Any) -> None:
    case = TRL["few_ids"][name]
    loss, norm, means = distilled(DistillationConfig(**SIZES, teacher="gemma2", **case["settings"]))
    assert loss == pytest.approx(case["loss"], rel=LOSS) and norm == pytest.approx(case["grad_norm"], rel=NORM)
    if case["settings"]["loss_add_tail"]:
        whole = TRL["distillation"][f"0.5_{case['settings']['temperature']}"]["metrics"]
        assert means == pytest.approx(whole, rel=1e-3, abs=1e-5)


def test_a_stages_reward_model_has_trls_loss(llama: Llama) -> None:
    """The whole objective, from the parameters."""
    model = llama.config.model_copy(update={"has_score": True})
    objective = jax.jit(build_objective(model, RewardModelConfig(**SIZES)))
    sums = objective(llama.params | {"score": jnp.array(TRL["score"])}, reward_batch([]))
    assert float(sums.loss / sums.count) == pytest.approx(TRL["rewards"]["plain"]["loss"], rel=LOSS)


def test_process_rewards_are_those_of_a_classifier(llama: Llama) -> None:
    """TRL's classifier has two rows, of which the score is the difference."""
    case = TRL["process_rewards"]
    answers = [
        EncodedRow(
            answer["ids"],
            [place in dict(ends) for place in range(len(answer["ids"]))],
            [float(dict(ends).get(place, 0)) for place in range(len(answer["ids"]))],
        )
        for answer, ends in zip(TRL["answers"], case["ends"], strict=True)
    ]
    batch: Any = whole_batch(StepRows(answers, SIZES["seq_len"], seed=0))
    model = llama.config.model_copy(update={"has_score": True})
    objective = build_objective(model, ProcessRewardModelConfig(**SIZES))

    @partial(jax.value_and_grad, has_aux=True)
    def loss(params: Params, batch: Any) -> tuple[jax.Array, Any]:
        sums = objective(params, batch)
        return sums.loss / sums.count, sums

    params, found = llama.params | {"score": jnp.array(TRL["score"])}, jax.jit(loss)
    (value, sums), grads = found(params, batch)
    assert float(value) == pytest.approx(case["loss"], rel=LOSS) and sums.count == sum(map(len, case["ends"]))
    assert float(optax.global_norm(grads)) == pytest.approx(case["grad_norm"], rel=NORM)
    assert float(sums.metrics["accuracy"] / sums.count) == pytest.approx(case["accuracy"], rel=1e-6)
    rows = [StepRows([answer], SIZES["seq_len"], seed=0).row(0) for answer in answers]
    unpacked: Any = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    (_, alone), _ = found(params, unpacked)
    assert float(alone.loss) == pytest.approx(float(sums.loss), rel=1e-5) and len(rows) == SIZES["global_batch_size"]


def test_wrapped_rows_are_trls() -> None:
    expected = TRL["wrapped"]
    order = permutation(0, 0, "documents", len(TRL["answers"]))
    examples = [example(TRL["answers"][at]) for at in np.argsort(order)]  # in an epoch's text they come in TRL's order
    rows = WrappedRows(examples, 16, seed=0)
    assert rows.num_rows == len(expected["input_ids"])
    whole = [rows.row(index) for index in range(rows.num_rows)]
    found = {tuple(row["tokens"].tolist()): row for row in whole}
    for ids, mask in zip(expected["input_ids"], expected["completion_mask"], strict=True):
        row = found[tuple(ids + [0] * (16 - len(ids)))]
        begins = row["positions"] == 0
        inside = ~begins[1 : len(ids)]  # a segment's first token is no target
        np.testing.assert_array_equal(row["loss_mask"][: len(ids) - 1], np.array(mask[1:]) * inside)
    learned = sum(row["loss_mask"].sum() for row in whole)
    assert learned == sum(sum(part.loss_mask[1:]) for part in examples)  # none is lost at a row's end


FORMULAS = f"{PACKAGE}.policy:policy_gradient", f"{PACKAGE}.policy:of_batch"
POLICY = ObjectiveKind("policy", PolicyConfig, "prompts", *FORMULAS)
BATCHES: dict[str, Callable[[Any], dict[str, np.ndarray]]] = {
    "pairs": lambda settings: pair_batch(getattr(settings, "length_alpha", None)),
    "labelled": lambda _: answer_batch(),
    "chat": lambda _: answer_batch(),
    "prompts": lambda _: policy_batch(),
}


@pytest.mark.parametrize("name", TRL["cases"])
def test_loss_gradient_and_metrics_are_trls(name: str, llama: Llama) -> None:
    case = TRL["cases"][name]
    settings = settings_of(case)
    kind = POLICY if settings.objective == "policy" else objective_kind(settings.objective)
    batch: Any = BATCHES[kind.rows](settings)
    batch = {column: jnp.asarray(values) for column, values in batch.items()}
    formula, of_batch = kind.load(), kind.load_context(settings)
    size = SEGMENTS.get(kind.rows)
    temperature = getattr(settings, "temperature", 1.0)
    found = llama.of(batch, temperature)
    context = {} if of_batch is None else of_batch(settings, likelihoods(batch, size, llama, found))

    def loss(found: TokenStatistics) -> tuple[jax.Array, Any]:
        sums = formula(settings, likelihoods(batch, size, llama, found), context)
        return sums.minimised / sums.count, sums

    (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(found)
    norm = llama.norm_of(batch, grads, temperature)
    assert float(value) == pytest.approx(case["loss"], rel=LOSS)
    assert norm == pytest.approx(case["grad_norm"], rel=NORM)
    found_metrics = logged(sums)
    if settings.objective == "policy" and getattr(settings, "entropy_weight", 0):
        assert found_metrics["entropy_coef"] == pytest.approx(case["settings"]["entropy_coef"])
    for metric, expected in case["metrics"].items():
        assert found_metrics[metric] == pytest.approx(expected, rel=1e-3, abs=1e-5), metric
