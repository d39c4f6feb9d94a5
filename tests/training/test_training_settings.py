"""Every number in a run's settings is refused when the file is read, by name, or it works."""

import inspect
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import jax
import jax.numpy as jnp
import pytest
from pydantic import ValidationError

from lifecycle.cli.scaling import ScalingConfig
from lifecycle.core.config import ConfigError, Section, VariantSection, validate
from lifecycle.core.progress import Silent
from lifecycle.kernels.divergence import Divergence, Predictions, divergence
from lifecycle.model.params import parameters
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.adapter import AdapterTrainingConfig
from lifecycle.training.checkpoints.config import CheckpointConfig, LocalCheckpointConfig
from lifecycle.training.config import FaultsConfig, MeasuredTasksConfig
from lifecycle.training.distilling import DistillationConfig, OfflineDistillationConfig, OnPolicyConfig
from lifecycle.training.drafting import EagleConfig
from lifecycle.training.likelihood import NextTokenConfig, SftConfig
from lifecycle.training.loop import run_job
from lifecycle.training.optimizer import build_optimizer, build_schedule
from lifecycle.training.optimizer_config import MOST_STEPS, OptimizerConfig, ScheduleConfig
from lifecycle.training.preference import CpoConfig, DpoConfig, KtoConfig, OrpoConfig

OF_TRAINING = (
    NextTokenConfig, SftConfig, DpoConfig, OrpoConfig, CpoConfig, KtoConfig, OptimizerConfig, ScheduleConfig,
    CheckpointConfig, LocalCheckpointConfig, FaultsConfig, MeasuredTasksConfig, EagleConfig,
    AdapterTrainingConfig, DistillationConfig, OnPolicyConfig,
    OfflineDistillationConfig,
)  # fmt: skip
STAGE = {"steps": 10, "seq_len": 8, "global_batch_size": 4}
NEEDED: dict[type[Section], dict[str, Any]] = {
    **dict.fromkeys(OF_TRAINING[:6], STAGE),
    LocalCheckpointConfig: {"folder": "/tmp"},
    MeasuredTasksConfig: {"names": ["task"]},
    EagleConfig: STAGE,
    DistillationConfig: STAGE | {"teacher": "wide"},
    OfflineDistillationConfig: STAGE | {"loss_top_k": 4},
    OnPolicyConfig: {"share": 0.5},
}
OF_MUON = ("momentum", "neuron_beta2")  # an update compiles for half a second
NOT_FINITE = [math.nan, math.inf, -math.inf]
BELOW = [-1, -1e-9]
TINY = [5e-324, 1e-50, 1e-38]
NEAR_ONE = [1 - 2**-53, 1 - 1e-9, 1 - 2**-24]
HUGE = [1e39, 1e308, 2**31, 2**63, 2**64 - 1, 2**64, 10**30]
# may be negative
SIGNED = {
    "alpha", "divergence_alpha", "high", "length_penalty", "low", "max_penalty", "max_value_correct",
    "max_value_wrong", "min_value_correct", "min_value_wrong", "mscale", "mscale_all_dim", "norm_offset",
    "off_policy_mask_threshold", "priority",
    "reward_weight", "seed", "stop_ids", "weight",
    "ScoresConfig.min", "ScoresConfig.max",  # logarithms of likelihoods, among others
}  # fmt: skip


def sections(of: type[Section] = Section) -> Iterator[type[Section]]:
    for section in of.__subclasses__():
        yield section
        yield from sections(section)


def numbers_in(annotation: Any) -> set[type]:
    """`int` and `float`, where an annotation has them."""
    if get_origin(annotation) is Annotated:
        return numbers_in(get_args(annotation)[0])
    inner = [found for part in get_args(annotation) for found in numbers_in(part)]
    return {annotation} if annotation in (int, float) else set(inner)


def fields_of(*roots: type[Section]) -> list[Any]:
    """(section, setting) of all settings that are numbers, or have some; of a section with variants, the variants'."""
    found = [section for section in dict.fromkeys(roots) if section.__module__.startswith("lifecycle.")]
    return [
        pytest.param(section, name, id=f"{section.__name__}.{name}")
        for section in found
        if VariantSection not in section.__bases__ and not inspect.isabstract(section)
        for name, field in section.model_fields.items()
        if numbers_in(field.annotation)
    ]


def given(section: type[Section], name: str, value: Any) -> Any:
    annotation = str(section.model_fields[name].annotation)
    return {"a": value} if "dict[" in annotation else [value] if "tuple[" in annotation else value


def needed(section: type[Section], name: str) -> dict[str, Any]:
    """What must be given beside a setting."""
    return {"name": "muon"} if name in OF_MUON else NEEDED.get(section, {})


def refusal(section: type[Section], name: str, value: Any) -> str | None:
    """What is said about a setting; None if it is accepted."""
    try:
        section.model_validate(needed(section, name) | {name: given(section, name, value)})
    except ValidationError as error:
        return next((issue["msg"] for issue in error.errors() if name in issue["loc"] or name in issue["msg"]), None)
    return None


@pytest.mark.parametrize(("section", "name"), fields_of(*sections(), ScalingConfig))
def test_no_number_is_infinite_none_or_negative(section: type[Section], name: str) -> None:
    is_signed = name in SIGNED or f"{section.__name__}.{name}" in SIGNED
    for value in [*NOT_FINITE, *([] if is_signed else BELOW)]:
        assert refusal(section, name, value), f"{name}={value} is accepted"


@pytest.mark.parametrize(
    ("section", "name"), [field for field in fields_of(*OF_TRAINING) if field.values[1] not in OF_MUON]
)
def test_an_extreme_of_a_training_stage_is_refused_by_name_or_works(section: type[Section], name: str) -> None:
    check_extremes(section, name)


@pytest.mark.long
@pytest.mark.parametrize("name", OF_MUON)
def test_an_extreme_of_muons_settings_is_refused_by_name_or_works(name: str) -> None:
    check_extremes(OptimizerConfig, name)


def check_extremes(section: type[Section], name: str) -> None:
    for value in [0, *TINY, *NEAR_ONE, *HUGE]:
        if refusal(section, name, value):
            continue
        settings = section.model_validate(needed(section, name) | {name: given(section, name, value)})
        again = json.loads(json.dumps(settings.plain(), allow_nan=False))  # as a manifest keeps it
        assert section.model_validate(again) == settings
        WORKS.get(section, lambda settings: None)(settings)


def rates_are_finite(schedule: ScheduleConfig) -> None:
    steps = 10
    rate = build_schedule(OptimizerConfig(schedule=schedule), steps)
    assert all(0 <= float(jnp.asarray(rate(step))) <= 1.001e-3 for step in (0, 1, steps - 1, MOST_STEPS - 1)), schedule


def updates_are_finite(config: OptimizerConfig) -> None:
    """Two updates of a table and of matrices, the first from gradients of zero."""
    rates = dict.fromkeys(["embed"], next(iter(config.rates.values()), 1.0))
    optimizer = build_optimizer(config.model_copy(update={"rates": rates}), MODEL, 10, build_mesh(MeshConfig(fsdp=1)))
    declared = parameters(MODEL)
    query = declared["blocks"]["0+1"]["attention"]["q"]
    some = {"embed": declared["embed"], "blocks": {"0+1": {"attention": {"q": query}}}}
    params = jax.tree.map(lambda parameter: jnp.ones(parameter.shape), some)
    state = optimizer.init(params)
    for size in (0.0, 1.0):
        updates, state = optimizer.update(jax.tree.map(lambda p, by=size: by * p, params), state, params)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state))), config


def scale_is_finite(config: AdapterTrainingConfig) -> None:
    assert 0 < jnp.float32(config.scale) < jnp.inf, config


def divergence_is_finite(config: DistillationConfig) -> None:
    """Of a student and a teacher that are sure of different tokens."""
    of = Divergence(config.beta, config.temperature)
    student, teacher = (Predictions(30 * jnp.eye(4)[None, [first]], jnp.eye(4)) for first in (0, 1))

    def loss(hidden: jax.Array) -> jax.Array:
        return sum(divergence(student._replace(hidden=hidden), teacher, jnp.ones((1, 1)), of), start=jnp.zeros(()))

    value, grad = jax.value_and_grad(loss)(student.hidden)
    assert jnp.isfinite(value) and jnp.isfinite(grad).all(), config


WORKS: dict[type[Section], Any] = {
    ScheduleConfig: rates_are_finite, OptimizerConfig: updates_are_finite, AdapterTrainingConfig: scale_is_finite,
    DistillationConfig: divergence_is_finite,
}  # fmt: skip


@pytest.mark.slow
def test_intervals_and_limits_may_be_as_large_as_a_number_can_be(tmp_path: Path) -> None:
    """What is counted in Python: how often something is done, and for how long."""
    most, long = 2**64 - 1, 1e308
    job = tiny_job(tmp_path, TinyRun(steps=3, global_batch_size=4))
    train = NextTokenConfig.model_validate(
        job.train.plain()
        | {
            "eval_every": most, "eval_bytes": most, "log_every": most,
            "faults": {"limit": most, "hang_s": long, "policy": "skip", "spike_sigma": 1e38},
            "checkpoint": {"every": most, "every_minutes": long, "keep": most, "max_unsaved_minutes": long,
                           "local": {"folder": str(tmp_path / "disk"), "every": most, "every_minutes": long}},
        }
    )  # fmt: skip
    assert run_job(replace(job, train=train), Silent())["steps"] == 3


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("faults", {"hang_s": 1e-9}, "faults.hang_s: Input should be greater than or equal to 10"),
        ("optimizer", {"learning_rate": 1e-50}, "learning_rate: devices compute with it in float32, where it is 0"),
        ("optimizer", {"weight_decay": 1e39}, "weight_decay: devices compute with it in float32, where it is infinite"),
        ("optimizer", {"beta1": 1 - 1e-9}, "optimizer.beta1: Input should be less than or equal to 0.99999994"),
        ("optimizer", {"schedule": {"steps": 2**40}}, "schedule.steps: Input should be less than or equal to 10000000"),
        ("checkpoint", {"every_minutes": math.inf}, "checkpoint.every_minutes: Input should be a finite number"),
        ("replay_share", 1e-9, "replay_share: of 1024 rows, in which shares are rounded, it is less than one"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(setting: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        validate(SftConfig, NEEDED[SftConfig] | {setting: value})
