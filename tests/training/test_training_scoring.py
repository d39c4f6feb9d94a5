"""Scoring against one plain forward a sequence, packed and cut, and as a program for TPUs that are not here."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.typing import Array
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.model.params import Params, abstract_params, logical_axes
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.parallel.placement import batch_sharding
from lifecycle.planning.compilers import TPU_COMPILER
from lifecycle.planning.topology import mesh_over, parse_topology, prepare
from lifecycle.testing.families import random_params
from lifecycle.training.scoring import RowShapes, _pack, document_nats, loglikelihoods, logprobs, measured_rows

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

CONFIG = ModelConfig(
    vocab_size=264, d_model=32, d_ff=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, max_seq_len=320,
    logits_soft_cap=0.1,
)  # fmt: skip
PARAMS = random_params(CONFIG)
ONE = build_mesh(MeshConfig())


@partial(jax.jit, static_argnums=0)
def whole_logprobs(config: ModelConfig, params: Params, tokens: Array) -> Array:
    positions = jnp.arange(tokens.shape[1])[None]
    return jax.nn.log_softmax(logits(config, params, forward(config, params, tokens, positions)))[0]


def plain_logprobs(ids: list[int]) -> np.ndarray:
    """log p of each token after the first, in a row of its own."""
    tokens = np.zeros((1, CONFIG.max_seq_len), np.int32)
    tokens[0, : len(ids) - 1] = ids[:-1]
    found = np.asarray(whole_logprobs(CONFIG, PARAMS, tokens), np.float64)
    return found[np.arange(len(ids) - 1), ids[1:]]


def documents(count: int, longest: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size).tolist() for size in rng.integers(2, longest, count)]


@pytest.mark.slow
def test_loglikelihoods_equal_a_row_of_ones_own() -> None:
    pairs = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in [*documents(20, 60), *documents(2, 320)]]
    found = loglikelihoods(CONFIG, PARAMS, pairs, ONE)
    for (context, rest), value in zip(pairs, found, strict=True):
        expected = plain_logprobs(context + rest)[len(context) - 1 :].sum()
        assert value == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))


def test_document_nats_predict_each_token_once_in_windows() -> None:
    texts = [np.array(ids) for ids in [*documents(10, 30), list(range(200)), [1]]]
    found = document_nats(CONFIG, PARAMS, texts, 32, ONE)
    for ids, value in zip(texts, found, strict=True):
        windows = [ids[i : i + 33].tolist() for i in range(0, len(ids) - 1, 32)]
        expected = -sum(plain_logprobs(window).sum() for window in windows)
        assert value == pytest.approx(expected, rel=1e-5)


def test_rows_are_packed_tightly_and_shapes_are_few() -> None:
    pieces = [np.array(ids) for ids in documents(400, 100)]
    batches = _pack(pieces, CONFIG.max_seq_len, RowShapes.of(ONE))
    assert {batch.tokens.shape for batch in batches} == {(8, 256)}
    assert sorted(place[0] for batch in batches for place in batch.spans) == list(range(400))
    tokens = sum(len(piece) - 1 for piece in pieces)
    assert tokens > 0.9 * sum(batch.tokens.size for batch in batches)


def test_pairs_that_cannot_be_scored_are_named() -> None:
    with pytest.raises(ValueError, match="pair 1: 321 tokens; the context holds 320"):
        loglikelihoods(CONFIG, PARAMS, [([1], [2]), ([1] * 300, [2] * 22)], ONE)
    with pytest.raises(ValueError, match="pair 0: context and continuation"):
        loglikelihoods(CONFIG, PARAMS, [([], [2])], ONE)


@pytest.mark.parametrize(
    ("mesh", "batch"),
    [
        ({"fsdp": 2, "tensor": 4}, (16, 256)),  # twice the rows of one device
        ({"context": 4}, (8, 256)),
        ({"stage": 2, "replica": 2}, (32, 256)),
    ],
)
def test_a_batch_has_rows_for_every_device(mesh: dict[str, int], batch: tuple[int, int]) -> None:
    pieces = [np.array(ids) for ids in documents(10, 100)]
    found = _pack(pieces, CONFIG.max_seq_len, RowShapes.of(build_mesh(MeshConfig(**mesh))))
    assert {packed.tokens.shape for packed in found} == {batch}


def test_rows_are_cut_evenly_and_few_lengths_are_compiled_for_accelerators() -> None:
    rows = RowShapes(num_shards=1, unit=16, shortest=256)
    assert [rows.length(size, 300) for size in (5, 256, 257, 300)] == [256, 256, 304, 304]
    assert {RowShapes(1, 1, 2048).length(size, 8192) for size in range(1, 8193, 7)} == {2048, 4096, 8192}
    assert [rows.height(length) for length in (256, 4096)] == [8, 1]


@pytest.mark.aot
@pytest.mark.skipif(not TPU_COMPILER.is_installed, reason="libtpu is not installed")
@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"fsdp": 4}, marks=pytest.mark.long),
        {"fsdp": 2, "tensor": 2},
        {"context": 4},
        {"stage": 2, "fsdp": 2},
    ],
    ids=str,
)
def test_rows_are_scored_by_kernels_over_sharded_weights_on_tpus(axes: dict[str, int]) -> None:
    """A kernel outside a manual `shard_map` does not compile over several TPUs."""
    prepare()
    mesh = mesh_over(parse_topology("v5p:2x2x1"), MeshConfig(**axes))
    config = ModelConfig(
        vocab_size=512, d_model=256, d_ff=512, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=128, max_seq_len=2048
    )
    shapes, places = abstract_params(config), tree_shardings(mesh, logical_axes(config))
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)
    rows = (RowShapes.of(mesh).height(2048), RowShapes.of(mesh).length(300, config.max_seq_len))
    assert rows[1] == 2048
    batch = {
        name: jax.ShapeDtypeStruct(rows, jnp.int32, sharding=batch_sharding(mesh, name))
        for name in ("tokens", "targets", "positions", "segment_ids")
    }
    lowered = measured_rows.lower(logprobs, config, mesh, params, batch)
    assert "tpu_custom_call" in lowered.as_text()
    program = lowered.compile().as_text() or ""
    assert "flash" in program
    assert "all-gather" in program or "all-reduce" in program
