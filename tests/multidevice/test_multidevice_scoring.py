"""Held-out text is scored where the weights lie: every mesh gives one device's bits per byte, and its answers."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

import lifecycle.evals.kinds  # noqa: F401  registers them
from lifecycle.core.config import validate
from lifecycle.evals.measurement import MeasuredTask, TaskMeasurement
from lifecycle.evals.model import EvaluatedModel, chat_model
from lifecycle.evals.tasks import TaskConfig, TaskRow
from lifecycle.inference.model import Model
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import logical_axes
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.stages.learning_rows import heldout_bits
from lifecycle.testing.families import random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.optimizer_config import OptimizerConfig
from tests.held_out import one_source
from tests.multidevice.meshes import MODELS, PAIRWISE, case_of

CLOSE = 1e-6
RING = ("projection ring", {"fsdp": 2, "context": 4})
TRAIN = NextTokenConfig(
    steps=10, seq_len=32, global_batch_size=8, eval_every=5, eval_bytes=2000, optimizer=OptimizerConfig(name="adamw")
)

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


def documents(config: ModelConfig) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, config.vocab_size, size) for size in draw.integers(2, 120, 60)]


def bits(config: ModelConfig, params: Any, axes: dict[str, int]) -> float:
    mesh = build_mesh(MeshConfig(**axes))
    placed = jax.device_put(params, tree_shardings(mesh, logical_axes(config)))
    texts: Any = one_source(documents(config))
    evaluation = heldout_bits(config, TRAIN, texts, np.ones(config.vocab_size, np.int64), mesh)
    assert evaluation is not None
    return evaluation.measure(placed)["heldout_bits_per_byte"]


@cache
def one_device(name: str) -> tuple[Any, float]:
    """Parameters and their bits on one device. Biases and sinks start at zero and norms at one: noise, so that each of
    them is seen to be cut right."""
    config, draw = MODELS[name], np.random.default_rng(1)
    fresh = jax.device_get(random_params(config))
    params = jax.tree.map(lambda x: x + 0.1 * draw.standard_normal(x.shape, np.float32), fresh)
    return params, bits(config, params, {})


@pytest.mark.parametrize(
    ("name", "axes"),
    [case_of(*PAIRWISE[0]), case_of(*RING, pytest.mark.slow), *(case_of(*c, pytest.mark.matrix) for c in PAIRWISE[1:])],
)
def test_bits_per_byte_do_not_depend_on_the_mesh(name: str, axes: dict[str, int]) -> None:
    params, expected = one_device(name.removesuffix(" ring"))
    assert bits(MODELS[name], params, axes) == pytest.approx(expected, rel=CLOSE)


def evaluated(axes: dict[str, int]) -> EvaluatedModel:
    tokenizer, mesh = ByteTokenizer(), build_mesh(MeshConfig(**axes))
    config = ModelConfig(
        vocab_size=264, d_model=32, d_ff=64, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, max_seq_len=64
    )
    params = jax.device_put(random_params(config, 3), tree_shardings(mesh, logical_axes(config)))
    return chat_model(Model(config, params, tokenizer, ChatTemplate(tokenizer)), mesh)


def measured(subject: EvaluatedModel) -> dict[str, float]:
    """What a run that trains these weights measures on two small tasks, by the same program as its evaluation."""
    choice = validate(TaskConfig, {"name": "choice", "kind": "multiple_choice", "rows": "none", "chat": False})
    text = validate(TaskConfig, {"name": "text", "kind": "bits_per_byte", "rows": "none"})
    rows: list[tuple[Any, list[dict[str, Any]]]] = [
        (choice, [{"query": f"q{n}", "choices": ["a", "bc", "d"], "gold": n % 3} for n in range(9)]),
        (text, [{"text": "some text " * n} for n in range(1, 12)]),
    ]
    tasks = [
        MeasuredTask(task, task.asked([TaskRow(str(n), row, "") for n, row in enumerate(of)], subject.encoder, 64), 9)
        for task, of in rows
    ]
    model = subject.model
    return TaskMeasurement(tasks, model.config, subject.mesh, model.tokenizer.vocab_size).measure(model.params)


@pytest.mark.long
@pytest.mark.parametrize(
    "axes",
    [{"fsdp": 2, "tensor": 2}, pytest.param({"stage": 2, "context": 2, "fsdp": 2}, marks=pytest.mark.matrix)],
    ids=str,
)
def test_a_sharded_model_is_evaluated_where_its_weights_are(axes: dict[str, int]) -> None:
    """Choices and generations over the mesh: no device ever has the whole model."""
    pairs: Sequence[tuple[list[int], list[int]]] = [([1, 2, 3], [4, 5]), ([7] * 40, [8, 9, 10])]
    one, mesh = evaluated({}), evaluated(axes)
    np.testing.assert_allclose(mesh.loglikelihoods(pairs), one.loglikelihoods(pairs), rtol=CLOSE)
    assert measured(mesh) == pytest.approx(measured(one), rel=CLOSE)
    prompts = [[5, 6, 7], [100]]
    assert mesh.generate(prompts, 12, ()) == one.generate(prompts, 12, ())
