"""Embeddings, scores and ranks over HTTP."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from serving_server import Running

from lifecycle.inference.model import Model
from lifecycle.inference.texts import embed_texts
from lifecycle.serving.vector_schemas import EmbeddingAnswer, RerankAnswer, ScoreAnswer

TEXTS = ["alpha", "beta", "gamma " * 60, "été ☃"]


@pytest.fixture(scope="module")
def vectors(model: Model) -> np.ndarray:
    return embed_texts(model, TEXTS)


def test_openai_s_client_gets_the_vectors_of_the_texts(server: Running, vectors: np.ndarray) -> None:
    """It asks for base64 unless told otherwise."""
    count = len(server.records)
    tokens = sum(len(text.encode()) + 1 for text in TEXTS)
    every: list[dict[str, Any]] = [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]
    for options in every:
        answer = server.client.embeddings.create(model="production", input=TEXTS, **options)
        found = [own.embedding for own in answer.data]
        if options == {"encoding_format": "base64"}:
            found = [np.frombuffer(base64.b64decode(str(own)), "<f4") for own in found]
        assert np.array_equal(np.array(found, np.float32), vectors)
        assert [own.index for own in answer.data] == [0, 1, 2, 3]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    record = server.wait_for_record(count + 3)
    assert (record.status, record.prompt_tokens, record.completion_tokens) == (200, tokens, 0)
    assert record.prompt == "\n".join(TEXTS) and len(record.generation_ids) == 4 and record.id.startswith("embd-")


def test_token_ids_and_one_text_are_inputs_too(server: Running, vectors: np.ndarray) -> None:
    ids = [server.engine.model.tokenizer.bos_id, *b"alpha"]
    for own in ("alpha", ["alpha"], ids, [ids]):
        answer = server.post("/v1/embeddings", model="production", input=own).json()
        EmbeddingAnswer.model_validate(answer, strict=True)
        assert np.array_equal(np.array(answer["data"][0]["embedding"], np.float32), vectors[0])


def test_fewer_dimensions_are_the_first_ones_of_length_one(server: Running, vectors: np.ndarray) -> None:
    answer = server.post("/v1/embeddings", model="production", input="alpha", dimensions=4).json()
    expected = vectors[0, :4] / np.linalg.norm(vectors[0, :4])
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected, rtol=1e-6)


def test_many_more_inputs_than_the_engine_holds_wait_their_turn(server: Running, model: Model) -> None:
    texts = [f"text {i}" for i in range(10 * server.engine.max_requests)]
    answer = server.post("/v1/embeddings", model="production", input=texts, pooling="last").json()
    found = np.array([own["embedding"] for own in answer["data"]], np.float32)
    assert np.array_equal(found, embed_texts(model, texts, "last"))


def test_a_score_is_the_cosine(server: Running, vectors: np.ndarray) -> None:
    one = server.post("/v1/score", model="production", text_1="alpha", text_2=TEXTS).json()
    ScoreAnswer.model_validate(one, strict=True)
    np.testing.assert_allclose([own["score"] for own in one["data"]], vectors @ vectors[0], atol=1e-6)
    pairs = server.post("/v1/score", model="production", text_1=TEXTS, text_2=TEXTS[::-1]).json()
    np.testing.assert_allclose([own["score"] for own in pairs["data"]], (vectors * vectors[::-1]).sum(1), atol=1e-6)
    single = server.post("/v1/score", model="production", text_1="alpha", text_2="alpha").json()
    assert single["data"][0]["score"] == pytest.approx(1)


def test_ranks_are_in_the_order_of_their_scores(server: Running, vectors: np.ndarray) -> None:
    ask: dict[str, Any] = {"model": "production", "query": "alpha", "documents": [*TEXTS[1:], "alpha", "alpha"]}
    answer = server.post("/v1/rerank", **ask).json()
    RerankAnswer.model_validate(answer, strict=True)
    results = answer["results"]
    assert [own["index"] for own in results[:2]] == [3, 4], "equal ones in the order of the request"
    scores = [own["relevance_score"] for own in results]
    assert scores == sorted(scores, reverse=True) and scores[0] == pytest.approx(1)
    for own in results:
        assert own["document"] == {"text": ask["documents"][own["index"]]}
    few = server.post("/v1/rerank", **ask, top_n=2, return_documents=False).json()["results"]
    assert few == [{key: own[key] for key in ("index", "relevance_score")} for own in results[:2]]
    assert len(server.post("/v1/rerank", **ask, top_n=0).json()["results"]) == 5


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input.1"),
        ("/v1/embeddings", {"input": [[]]}, "input.0"),
        ("/v1/embeddings", {"input": [300]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 17}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "pooling": "cls"}, "pooling"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 9}, "truncate_prompt_tokens"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
    ],
)
def test_a_bad_request_is_named(server: Running, path: str, body: dict[str, Any], param: str) -> None:
    response = server.post(path, model="production", **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_a_text_that_exceeds_the_context_is_refused(server: Running) -> None:
    for length in (4096, 5000, 100_000):
        response = server.post("/v1/embeddings", model="production", input=["a", "x" * length])
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
    assert server.post("/v1/embeddings", model="production", input="x" * 4095).status_code == 200
    assert server.post("/v1/embeddings", model="gone", input="a").status_code == 404


@pytest.mark.slow
def test_a_client_that_goes_away_leaves_nothing_behind(server: Running) -> None:
    count = len(server.records)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.base}/v1/embeddings",
            json={"model": "production", "input": ["x" * 4000] * 900},
            timeout=httpx.Timeout(10, read=0.3),
        )
    assert server.wait_for_record(count + 1).status == 499
    assert server.post("/v1/embeddings", model="production", input="a").status_code == 200
    assert server.engine.stats.active == server.engine.stats.waiting == 0
