"""Embeddings against a plain forward pass, and what a caller relies on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.typing import Array
from lifecycle.inference.engine import Engine
from lifecycle.inference.generate import embed, generate
from lifecycle.inference.intake import ContextLengthError
from lifecycle.inference.model import Model
from lifecycle.inference.pooling import Embedding, Pooling, normalised
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.texts import embed_texts
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.params import Params

SLOTS = 2
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, stop_ids=())
PROMPTS = [[65], [66] * 5, list(range(40, 57)), [i % 250 for i in range(300)], [7] * 256, [i % 99 for i in range(320)]]

pytestmark = pytest.mark.usefixtures("chunks_of_two_sizes")


@partial(jax.jit, static_argnums=0)
def hidden_states(config: ModelConfig, params: Params, tokens: Array) -> Array:
    return forward(config, params, tokens, jnp.arange(tokens.shape[1])[None])[0]


def plain(model: Model, prompt: list[int], pooling: Pooling) -> np.ndarray:
    tokens = np.zeros((1, model.config.max_seq_len), np.int32)
    tokens[0, : len(prompt)] = prompt
    states = np.asarray(hidden_states(model.config, model.params, tokens), np.float64)[: len(prompt)]
    vector = states.mean(0) if pooling == "mean" else states[-1]
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    "pooling", [pytest.param("mean", marks=pytest.mark.slow), pytest.param("last", marks=pytest.mark.long)]
)
def test_a_vector_is_that_of_the_plain_forward_whatever_else_runs(model: Model, pooling: Pooling) -> None:
    """Of one token to the whole context, in one chunk and in two, beside answers that are generated."""
    alone = [embed(model, [prompt], pooling, SLOTS)[0] for prompt in PROMPTS]
    with Engine(model, SLOTS) as engine:
        answers, embeddings = [], []
        for prompt in PROMPTS:
            embeddings.append(engine.embed(prompt, pooling))
            answers.append(engine.submit(prompt[:300], GREEDY))
        for prompt, embedding, own in zip(PROMPTS, embeddings, alone, strict=True):
            assert embedding.wait().tokens == ()
            assert embedding.vector is not None and embedding.vector.dtype == np.float32
            np.testing.assert_allclose(embedding.vector, plain(model, prompt, pooling), atol=1e-5)
            assert np.array_equal(embedding.vector, own)
        together = [answer.wait() for answer in answers]
        assert engine.stats.active == engine.stats.waiting == 0
    assert together == generate(model, [prompt[:300] for prompt in PROMPTS], GREEDY, SLOTS)


@pytest.mark.slow
def test_nothing_is_compiled_for_an_embedding_and_no_token_is_made(model: Model, compiled: list[str]) -> None:
    with Engine(model, num_slots=SLOTS, warm_up=True) as engine:
        compiled.clear()
        for embedding in [engine.embed(prompt, "mean") for prompt in PROMPTS]:
            embedding.wait()
        assert engine.stats.decode_steps == 0 and engine.stats.prefill_tokens == sum(map(len, PROMPTS))
        assert compiled == []


def test_a_slot_serves_an_answer_after_an_embedding_and_an_embedding_after_an_answer(model: Model) -> None:
    """Settings and penalties of one request never reach the next in its slot."""
    penalised = GREEDY.model_copy(update={"repetition_penalty": 1.3, "temperature": 1.0, "seed": 3})
    expected = generate(model, [PROMPTS[1]], penalised, SLOTS)[0]
    with Engine(model, SLOTS) as engine:
        embeddings, answers = [], []
        for _ in range(3):  # each fills all slots
            embeddings += [engine.embed(PROMPTS[2], "mean") for _ in range(SLOTS)]
            answers += [engine.submit(PROMPTS[1], penalised) for _ in range(SLOTS)]
        assert [answer.wait() for answer in answers] == [expected] * 6
        vectors = [embedding.vector for embedding in embeddings if embedding.wait()]
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)


def test_a_cached_prefix_changes_no_bit(model: Model) -> None:
    """A last token's vector may come from cached tokens, a mean never does; beside answers."""
    prompts = [[i % 99 for i in range(length)] for length in (300, 320, 260)]
    kinds: tuple[Pooling, ...] = ("last", "mean")
    expected = {kind: embed(model, prompts, kind, SLOTS) for kind in kinds}
    runner = Runner(model, SLOTS, max_queue=20)
    long = GREEDY.model_copy(update={"max_tokens": 200})
    answers = [runner.submit([50 + i], long) for i in range(2)]
    waiting = [(number, runner.embed(prompts[number], kind)) for _ in range(2) for kind in kinds for number in range(3)]
    while runner.has_work:
        runner.turn()
    for number, embedding in waiting:
        assert embedding.vector is not None
        assert np.array_equal(embedding.vector, expected[embedding.pooling][number])
    assert all(len(answer.wait().tokens) == 200 for answer in answers)


def test_an_embedding_that_has_given_up_its_slot_begins_again() -> None:
    states = np.eye(3, dtype=np.float32)
    embedding = Embedding([1] * 6, "mean")
    for chunks in ([0], [0, 1], [0, 1, 2]):
        embedding.begin()
        for number in chunks:
            embedding.add(2 * states[number], states[number])
    embedding.finish()
    assert embedding.vector == pytest.approx(normalised(np.ones(3)))


def test_texts_that_do_not_fit_are_refused_and_a_cancelled_one_frees_its_slot(model: Model) -> None:
    runner = Runner(model, SLOTS, max_queue=4)
    for prompt in ([], [1] * 321):
        with pytest.raises(ContextLengthError, match="1 to 320"):
            runner.embed(prompt, "mean")
    with pytest.raises(ValueError, match="outside"):
        runner.embed([261], "mean")
    embedding = runner.embed([1] * 320, "mean")
    embedding.cancel()
    runner.turn()
    assert embedding.wait().finish_reason == "cancelled" and embedding.vector is None and not runner.has_work


def test_texts_become_rows_that_begin_as_contexts_do(model: Model) -> None:
    texts = ["abc", "héllo"]
    found = embed_texts(model, texts, "last")
    assert found.shape == (2, 32)
    ids = [model.tokenizer.begin(model.tokenizer.encode(text)) for text in texts]
    assert np.array_equal(found, embed(model, ids, "last"))
    assert embed_texts(model, []).shape == (0, 32)
    assert not normalised(np.zeros(3)).any()
