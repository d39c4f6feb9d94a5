"""What a request must satisfy before it is queued: it fits the context, and its tokens are the tokenizer's."""

from collections.abc import Sequence

from lifecycle.inference.bad_words import settled
from lifecycle.inference.generation import Generation
from lifecycle.inference.grammar import Grammars
from lifecycle.inference.model import Model
from lifecycle.inference.pooling import Embedding, Pooling
from lifecycle.inference.sampling import SamplingParams


class ContextLengthError(ValueError):
    """A request that does not fit the context."""


class Intake:
    """Makes requests of what one model is asked, from any thread; `grammars` compiles theirs."""

    def __init__(self, model: Model, max_seq_len: int) -> None:
        self.max_seq_len = max_seq_len
        self.grammars = Grammars(model.tokenizer, model.stop_ids, model.config.vocab_size)
        self._tokenizer, self._stop_ids = model.tokenizer, model.stop_ids

    def generation(self, prompt: Sequence[int], params: SamplingParams, prediction: Sequence[int] = ()) -> Generation:
        """A request for tokens, with what its output may be. Raises `ContextLengthError`, `GrammarError`,
        `ForbiddenError`, or `ValueError` for ids that the tokenizer does not have."""
        max_tokens = self._max_tokens(len(prompt), params)
        params, num_ids = settled(params, self._tokenizer, self._stop_ids, max_tokens), self._tokenizer.vocab_size
        if unknown := [token for token, _ in params.logit_bias if token >= num_ids]:
            raise ValueError(f"logit_bias: token id {unknown[0]} is outside the tokenizer's {num_ids}")
        constraint = None if params.grammar is None else self.grammars.constraint(params.grammar)
        self._require_ids([*prompt, *prediction])
        return Generation(prompt, params, max_tokens, constraint, prediction)

    def embedding(self, prompt: Sequence[int], pooling: Pooling) -> Embedding:
        """A request for a prompt's vector. Raises `ContextLengthError`, or `ValueError` as `generation` does."""
        if not 0 < len(prompt) <= self.max_seq_len:
            raise ContextLengthError(
                f"the context holds 1 to {self.max_seq_len} tokens, but the text has {len(prompt)}"
            )
        self._require_ids(prompt)
        return Embedding(prompt, pooling)

    def _require_ids(self, ids: Sequence[int]) -> None:
        self._tokenizer.require_rows(ids)
        if min(ids) < 0 or max(ids) >= self._tokenizer.vocab_size:
            raise ValueError(f"the request has token ids outside the tokenizer's {self._tokenizer.vocab_size}")

    def _max_tokens(self, prompt_len: int, params: SamplingParams) -> int:
        """The number of tokens that a request may generate."""
        if prompt_len == 0:
            raise ContextLengthError("the prompt is empty; it needs at least one token, for example BOS")
        room = self.max_seq_len - prompt_len
        wanted = params.max_tokens if params.max_tokens is not None else max(room, 1)
        if wanted > room:
            raise ContextLengthError(
                f"the context holds {self.max_seq_len} tokens, but {prompt_len + wanted} were asked for "
                f"({prompt_len} in the prompt, {wanted} to generate); shorten one of them"
            )
        return wanted
