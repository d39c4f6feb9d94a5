"""Request bodies of OpenAI's API, as far as they are supported, and of vLLM's for tokens; chats' are in
`chat_schemas.py`.

What must hold: nothing is silently ignored. An API field that this server does not support is rejected by name, unless
its value has no effect; an unknown field is rejected too. `top_k`, `min_p`, `typical_p` and `repetition_penalty` are
additions, and so are vLLM's `bad_words`, `min_tokens`, `ignore_eos`, `structured_outputs` and `priority`, and
transformers' `bad_words_ids`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lifecycle.inference.defaults import MAX_PENALTY, MAX_TOP_K, MIN_PENALTY, SamplingConfig
from lifecycle.inference.forbidden import MAX_FORBIDDEN, MAX_FORBIDDEN_LENGTH
from lifecycle.inference.sampling import MAX_BIAS, MAX_BIASES, Repeated, SamplingParams
from lifecycle.serving.errors import RequestError
from lifecycle.serving.parsing import Body

# Known but unsupported fields: the values that have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "verbosity": (),
    "web_search_options": (),
}
MAX_STOPS = 4
MAX_STOP_LENGTH = 1000  # characters; each new token is compared with every prefix of a stop string
MAX_WORD_LENGTH = 200  # characters of a bad word, which may have few tokens
MAX_CHOICES = 16
MAX_TOKENS = 2**31 - 1  # above any context and any vocabulary
MAX_LABEL_LENGTH = 512  # characters, as in OpenAI's metadata

type Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
type Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
type Label = Annotated[str, Field(max_length=MAX_LABEL_LENGTH)]
type StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
type TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]  # below any limit of 32 bits
type Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
type Biases = Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES)]
type TokenIds = list[Annotated[int, Field(ge=0, le=MAX_TOKENS)]]
type BadWord = Annotated[str, Field(min_length=1, max_length=MAX_WORD_LENGTH)]
type BadWords = Annotated[list[BadWord], Field(max_length=MAX_FORBIDDEN)]
type BadWordIds = Annotated[TokenIds, Field(min_length=1, max_length=MAX_FORBIDDEN_LENGTH)]


def without(*supported: str) -> dict[str, tuple[Any, ...]]:
    """`NEUTRAL` for a route that supports some of its fields."""
    return {name: values for name, values in NEUTRAL.items() if name not in supported}


class StructuredOutputs(Body):
    """What the output must be, under vLLM's names: one of these. `grammar` is in llguidance's variant of Lark."""

    json_: Any = Field(default=None, alias="json")  # a schema, or its text
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "StructuredOutputs":
        if sum(value is not None for value in dict(self).values()) != 1:
            message = "structured_outputs: give one of json, json_object, regex, choice, grammar"
            raise RequestError(400, message, "structured_outputs", "invalid_value")
        return self


class StreamOptions(Body):
    """Whether a stream ends with the usage."""

    include_usage: bool = False


class GenerationRequest(Body):
    """The common fields of both kinds of request."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=MIN_PENALTY, le=MAX_PENALTY)] | None = None
    presence_penalty: Repeated | None = None
    frequency_penalty: Repeated | None = None
    logit_bias: Biases | None = None
    bad_words: BadWords | None = None  # that the answer must not have
    bad_words_ids: Annotated[list[BadWordIds], Field(max_length=MAX_FORBIDDEN)] | None = None  # the same, as tokens
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None  # before these nothing ends the answer
    ignore_eos: bool | None = None  # True: the model's own ids do not end it
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None  # lower ones get slots first
    user: Label | None = None  # the request log has it, or its newer name
    safety_identifier: Label | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            message = "stream_options is only allowed when stream is true"
            raise RequestError(400, message, "stream_options", "invalid_value")
        return self

    @property
    def sender(self) -> str | None:
        """The client's label for the user on whose behalf it asks."""
        return self.safety_identifier if self.safety_identifier is not None else self.user

    @property
    def num_made(self) -> int:
        """How many choices are made of each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether the stream is to end with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, defaults: SamplingParams, index: int) -> SamplingParams:
        """The settings of choice number `index`: the request's, else the model's defaults."""
        names = (*SamplingConfig.model_fields, "presence_penalty", "frequency_penalty", "min_tokens", "priority")
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.seed is not None:
            given["seed"] = (self.seed + index) % 2**64
        if self.logit_bias is not None:
            given["logit_bias"] = tuple((int(token), bias) for token, bias in self.logit_bias.items())
        given["bad_words"] = tuple(self.bad_words or ())
        given["bad_words_ids"] = tuple(map(tuple, self.bad_words_ids or ()))
        if self.ignore_eos:
            given["stop_ids"] = ()
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return defaults.model_copy(update={**given, "stop": tuple(stops)})


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = without("best_of")
    prompt: str | list[str] | TokenIds | list[TokenIds]
    max_tokens: Count | None = 16
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Choices | None = None  # so many are made, and the best `n` of them are the answer

    @model_validator(mode="after")
    def _check_best_of(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise RequestError(400, f"best_of is less than n={self.n or 1}", "best_of", "invalid_value")
        if self.stream and self.num_made > (self.n or 1):
            message = "best_of: which choices are the best is known at the end, so they are not streamed"
            raise RequestError(400, message, "best_of", "unsupported_parameter")
        return self

    @property
    def num_made(self) -> int:
        """How many choices are made of each prompt."""
        return self.best_of or self.n or 1

    def sampling(self, defaults: SamplingParams, index: int) -> SamplingParams:
        """The settings of choice number `index`, with OpenAI's names for lengths and log-probabilities."""
        changes: dict[str, Any] = {"max_tokens": self.max_tokens, "top_logprobs": self.logprobs or 0}
        if self.echo:
            changes["prompt_logprobs"] = self.logprobs
        return super().sampling(defaults, index).model_copy(update=changes)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: str
    tokens: TokenIds
