"""Handlers of the routes that compare texts by their vectors: embeddings, scores and ranks.

The model is a decoder and not a cross-encoder: a score is the cosine of two embeddings.
"""

import asyncio
import base64
import secrets
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from lifecycle.inference.generation import EngineError
from lifecycle.inference.pooling import Embedding, Pooling, normalised
from lifecycle.serving.choices import Served, failed, rejections, require_capacity
from lifecycle.serving.delivery import too_late, unless_gone
from lifecycle.serving.desk import Desk
from lifecycle.serving.errors import RequestError
from lifecycle.serving.prompts import text_prompts
from lifecycle.serving.record import Recorder
from lifecycle.serving.vector_schemas import (
    Document,
    Embedded,
    EmbeddingAnswer,
    EmbeddingRequest,
    PromptUsage,
    Ranked,
    RerankAnswer,
    RerankRequest,
    ScoreAnswer,
    Scored,
    ScoreRequest,
)

ROOM_S = 0.05  # how soon an input that found the queue full tries again


class Vectors:
    """`/v1/embeddings`, `/v1/score` and `/v1/rerank`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def embed(self, request: Request) -> Response:
        """Vectors of texts."""

        async def work(ask: EmbeddingRequest, recorder: Recorder) -> Response:
            served = self._desk.serve(ask, recorder)
            _require_dimensions(ask.dimensions, served.engine.model.config.d_model)
            vectors, usage = await self._vectors(request, served, ask.inputs, ask.pooling, "input", recorder)
            response = await self._desk.in_thread(_embeddings, ask, vectors, usage)
            recorder.finish(200)
            return response

        return await self._desk.recorded(request, EmbeddingRequest, work)

    async def score(self, request: Request) -> Response:
        """Cosines of pairs of texts."""

        async def work(ask: ScoreRequest, recorder: Recorder) -> Response:
            served, (first, second) = self._desk.serve(ask, recorder), ask.sides
            vectors, usage = await self._vectors(request, served, [*first, *second], ask.pooling, "text_1", recorder)
            cosines = (vectors[: len(first)] * vectors[len(first) :]).sum(1)
            data = [Scored(index=index, score=float(cosine)) for index, cosine in enumerate(cosines)]
            answer_id, created = recorder.record.id, int(recorder.record.time)
            recorder.finish(200)
            return _json(ScoreAnswer(id=answer_id, created=created, model=ask.model, data=data, usage=usage))

        return await self._desk.recorded(request, ScoreRequest, work)

    async def rerank(self, request: Request) -> Response:
        """Documents in the order of their cosines with a query."""

        async def work(ask: RerankRequest, recorder: Recorder) -> Response:
            served, texts = self._desk.serve(ask, recorder), [ask.query, *ask.documents]
            vectors, usage = await self._vectors(request, served, texts, ask.pooling, "documents", recorder)
            recorder.finish(200)
            return _json(_ranked(ask, vectors[1:] @ vectors[0], usage, recorder.record.id))

        return await self._desk.recorded(request, RerankRequest, work)

    async def _vectors(
        self,
        request: Request,
        served: Served,
        texts: Sequence[str | list[int]],
        pooling: Pooling,
        param: str,
        recorder: Recorder,
    ) -> tuple[np.ndarray, PromptUsage]:
        engine = served.engine
        require_capacity(engine, 1)
        prompts = await self._desk.in_thread(text_prompts, texts, engine.model, engine.max_seq_len, param)
        num_tokens = sum(map(len, prompts))
        recorder.record.prompt = "\n".join(text for text in texts if isinstance(text, str))
        recorder.begin(f"embd-{secrets.token_hex(12)}", (), num_tokens)
        vectors = await unless_gone(request, _embedded(served, prompts, pooling, recorder))
        return vectors, PromptUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)


async def _embedded(
    served: Served, prompts: Sequence[Sequence[int]], pooling: Pooling, recorder: Recorder
) -> np.ndarray:
    """The vectors of prompts, in their order, as many at a time as the engine has slots."""
    engine = served.engine
    vectors = np.zeros((len(prompts), engine.model.config.d_model), np.float32)
    todo = iter(enumerate(prompts))

    async def work() -> None:
        for index, prompt in todo:
            vectors[index] = await _vector(served, prompt, pooling, recorder)

    try:
        async with asyncio.timeout_at(recorder.deadline), asyncio.TaskGroup() as group:
            for _ in range(min(engine.num_slots, len(prompts))):
                group.create_task(work())
    except TimeoutError:
        raise too_late(recorder) from None
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return vectors


async def _vector(served: Served, prompt: Sequence[int], pooling: Pooling, recorder: Recorder) -> np.ndarray:
    embedding = await _submitted(served, prompt, pooling, recorder)
    recorder.record.generation_ids += (embedding.id,)
    try:
        async for _ in embedding:
            pass
    except EngineError as error:
        raise failed(error) from error
    assert embedding.vector is not None, "the event came with the vector"
    return embedding.vector


async def _submitted(served: Served, prompt: Sequence[int], pooling: Pooling, recorder: Recorder) -> Embedding:
    """Raises `RequestError` if the queue is full for a request's first prompt; the others wait until there is room."""
    while True:
        try:
            with rejections():
                return served.engine.embed(prompt, pooling, served.adapter)
        except RequestError as error:
            if error.status != 429 or not recorder.record.generation_ids:
                raise
        await asyncio.sleep(ROOM_S)


def _require_dimensions(dimensions: int | None, most: int) -> None:
    if dimensions is not None and dimensions > most:
        message = f"dimensions is {dimensions}, but the model's vectors have {most}"
        raise RequestError(400, message, "dimensions", "invalid_value")


def _embeddings(ask: EmbeddingRequest, vectors: np.ndarray, usage: PromptUsage) -> Response:
    if ask.dimensions is not None:
        vectors = np.array([normalised(vector[: ask.dimensions]) for vector in vectors])
    is_text = ask.encoding_format == "base64"
    shown = [_base64(vector) if is_text else vector.tolist() for vector in vectors]
    data = [Embedded(index=index, embedding=own) for index, own in enumerate(shown)]
    return _json(EmbeddingAnswer(model=ask.model, data=data, usage=usage))


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _ranked(ask: RerankRequest, scores: np.ndarray, usage: PromptUsage, answer_id: str) -> RerankAnswer:
    best = np.argsort(-scores, kind="stable")[: ask.top_n or len(scores)].tolist()
    shown = [Document(text=text) if ask.return_documents else None for text in ask.documents]
    results = [Ranked(index=index, document=shown[index], relevance_score=float(scores[index])) for index in best]
    return RerankAnswer(id=answer_id, model=ask.model, results=results, usage=usage)


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")
