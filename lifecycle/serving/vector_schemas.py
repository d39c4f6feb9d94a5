"""Bodies and answers of OpenAI's embeddings, and of scores and ranks in vLLM's shapes.

vLLM's `vllm/entrypoints/pooling/score/protocol.py` has the last two; its rerank route is Jina's and Cohere's.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from lifecycle.inference.pooling import Pooling
from lifecycle.serving.errors import RequestError
from lifecycle.serving.parsing import Body
from lifecycle.serving.schemas import MAX_TOKENS, Label, TokenIds

MAX_INPUTS = 2048  # texts of one request, as in OpenAI's API

type Text = Annotated[str, Field(min_length=1)]
type Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
type Ids = Annotated[TokenIds, Field(min_length=1)]


class _Pooled(Body):
    """The fields that all of them have. `pooling` is an addition."""

    model: str
    pooling: Pooling = "mean"  # of the tokens' hidden states, or that of the last token
    user: Label | None = None

    @property
    def sender(self) -> str | None:
        """The client's label for the user on whose behalf it asks."""
        return self.user


class EmbeddingRequest(_Pooled):
    """`POST /v1/embeddings`. A text begins as the model's contexts do, token ids are taken as they are."""

    input: Text | Texts | Ids | Annotated[list[Ids], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None  # the first ones, made a vector of length 1

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each input, as text or as token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[token for token in self.input if isinstance(token, int)]]
        return [own for own in self.input if not isinstance(own, int)]


class ScoreRequest(_Pooled):
    """`POST /v1/score`: each text of the second side with the one of the first, or with the one at its place."""

    text_1: Text | Texts
    text_2: Text | Texts

    @model_validator(mode="after")
    def _check_sides(self) -> "ScoreRequest":
        first, second = self.sides
        if len(first) not in (1, len(second)):
            message = f"text_1 has {len(first)} texts and text_2 {len(second)}: give one text_1, or as many as text_2"
            raise RequestError(400, message, "text_1", "invalid_value")
        return self

    @property
    def sides(self) -> tuple[list[str], list[str]]:
        """The texts of both sides."""
        first, second = ([side] if isinstance(side, str) else side for side in (self.text_1, self.text_2))
        return first, second


class RerankRequest(_Pooled):
    """`POST /v1/rerank`: the documents by their score with the query."""

    query: Text
    documents: Texts
    top_n: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None  # None and 0: all
    return_documents: bool = True


class Embedded(BaseModel):
    """One input's vector: numbers, or the base64 of their float32 bytes, little-endian."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class PromptUsage(BaseModel):
    """Tokens of a request that generates none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """Vectors in the order of the inputs."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedded]
    usage: PromptUsage


class Scored(BaseModel):
    """The score of the pair at `index`: the cosine of both vectors."""

    object: Literal["score"] = "score"
    index: int
    score: float


class ScoreAnswer(BaseModel):
    """Scores in the order of `text_2`."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Scored]
    usage: PromptUsage


class Document(BaseModel):
    """A document's text."""

    text: str


class Ranked(BaseModel):
    """A document by its place in the request."""

    index: int
    document: Document | None = None
    relevance_score: float


class RerankAnswer(BaseModel):
    """Documents, the best first; of equal ones that which was first in the request."""

    id: str
    model: str
    results: list[Ranked]
    usage: PromptUsage
