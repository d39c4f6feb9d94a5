"""Every family against transformers: logits of packed and padded rows, decoding with a cache, the same weights back.

The golden values are those of each row alone; `golden/make_family_golden.py` saw that transformers' own padding and
packing give them too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lifecycle.core.typing import Array
from lifecycle.model.cache import KVCache, init_cache
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward, forward_cached
from lifecycle.model.embedding import logits
from lifecycle.weights.published import WEIGHTS, load_config, load_weights, save_weights
from tests.golden.family_weights import write_model

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")

GOLDEN = Path(__file__).parents[1] / "golden/families"
WHOLE_MODEL = 1e-4  # float32, a whole model
PADDING, CHUNK, PROMPT = 5, 4, 6
DEFAULT = ("deepseek_v3", "gemma3_text", "gpt_oss", "llama3", "mixtral", "qwen3")


@dataclass(frozen=True)
class Golden:
    """A family's tiny model as published, and what transformers computes with it."""

    folder: Path
    config: ModelConfig
    params: dict[str, Any]
    tokens: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray

    @property
    def length(self) -> int:
        return self.tokens.shape[1]


def families() -> list[Any]:
    names = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
    return [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module", params=families())
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    source, folder = GOLDEN / request.param, tmp_path_factory.mktemp(request.param)
    write_model(source, folder)
    config = load_config(folder).model_copy(update={"compute_dtype": "float32"})
    # in NumPy: arrays put on a device by name would compile decoding twice, before and after the cache is there too
    params = jax.device_get(load_weights(config, folder))
    return Golden(folder, config, params, **np.load(source / "expected.npz"))


@partial(jax.jit, static_argnums=0)
def row_logits(config: ModelConfig, params: Any, tokens: Array, positions: Array, segment_ids: Array) -> Array:
    return logits(config, params, forward(config, params, tokens, positions, segment_ids))


@partial(jax.jit, static_argnums=0)
def chunk_logits(
    config: ModelConfig, params: Any, tokens: Array, positions: Array, cache: KVCache
) -> tuple[Array, KVCache]:
    hidden, cache = forward_cached(config, params, tokens, positions, cache)
    return logits(config, params, hidden), cache


def placed(golden: Golden) -> Iterator[tuple[int, int, int, int]]:
    """(document, row, first place, first position): both documents in one row, each after padding in a row of its own,
    where the second's positions count the padding as transformers' do."""
    yield from [(0, 0, 0, 0), (1, 0, golden.length, 0), (0, 1, PADDING, 0), (1, 2, PADDING, PADDING)]


def test_packed_and_padded_rows_have_transformers_logits(golden: Golden) -> None:
    shape = (3, 2 * golden.length + PADDING)  # every row ends in padding
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    for segment, (document, row, place, position) in enumerate(placed(golden), 1):
        here = np.s_[row, place : place + golden.length]
        tokens[here], segments[here] = golden.tokens[document], segment
        positions[here] = position + np.arange(golden.length)
    found = row_logits(golden.config, golden.params, tokens, positions, segments)
    for document, row, place, _ in placed(golden):
        here = found[row, place : place + golden.length]
        np.testing.assert_allclose(here, golden.logits[document], atol=WHOLE_MODEL, rtol=0)
    assert np.abs(golden.logits).max() > 3  # logits of a size at which the tolerance says something


class Decoding:
    """Two rows that go on with a cache, chunk by chunk."""

    def __init__(self, golden: Golden) -> None:
        self.golden, self.cache = golden, init_cache(golden.config, 2, golden.length)
        self.done = np.zeros(2, int)

    def go_on(self, pieces: list[np.ndarray]) -> list[np.ndarray]:
        """The logits of each row's next tokens; what a row does not fill of a chunk is padding."""
        tokens, positions = np.zeros((2, CHUNK), np.int32), np.full((2, CHUNK), self.cache.length, np.int32)
        for row, piece in enumerate(pieces):
            tokens[row, : len(piece)] = piece
            positions[row, : len(piece)] = self.done[row] + np.arange(len(piece))
        found, self.cache = chunk_logits(self.golden.config, self.golden.params, tokens, positions, self.cache)
        self.done += [len(piece) for piece in pieces]
        return [np.asarray(found[row, : len(piece)]) for row, piece in enumerate(pieces)]


def test_decoding_with_a_cache_equals_the_full_forward(golden: Golden) -> None:
    decoding = Decoding(golden)
    for sizes in [(4, 1), (4, 3), (2, 4), *[(1, 1)] * 8, (1, 4), (0, 4), (4, 0), (1, 0)]:
        before = decoding.done.copy()
        ends = before + sizes
        found = decoding.go_on([golden.tokens[row, before[row] : ends[row]] for row in range(2)])
        for row in range(2):
            exact = golden.logits[row, before[row] : ends[row]]
            np.testing.assert_allclose(found[row], exact, atol=WHOLE_MODEL, rtol=0)
    assert decoding.done.tolist() == [golden.length] * 2


def test_greedy_decoding_goes_on_as_transformers_does(golden: Golden) -> None:
    decoding = Decoding(golden)
    decoding.go_on([row[:CHUNK] for row in golden.tokens])
    pieces = [row[CHUNK:PROMPT] for row in golden.tokens]
    written: list[list[int]] = []
    for _ in range(golden.greedy.shape[1]):
        best = [int(found[-1].argmax()) for found in decoding.go_on(pieces)]
        written.append(best)
        pieces = [np.array([token], np.int32) for token in best]
    assert np.array(written).T.tolist() == golden.greedy.tolist()


def test_weights_and_config_come_back_as_published(golden: Golden, tmp_path: Path) -> None:
    save_weights(golden.config, golden.params, tmp_path)
    found, published = load_file(tmp_path / WEIGHTS), load_file(golden.folder / WEIGHTS)
    assert found.keys() == published.keys()
    assert [name for name in found if not np.array_equal(found[name], published[name])] == []
    assert load_config(tmp_path) == load_config(golden.folder)
