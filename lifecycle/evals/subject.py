"""The two narrow protocols that an evaluation needs from a model, so that tasks do not depend on its implementation."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from lifecycle.inference.beams import BeamConfig

type Pair = tuple[list[int], list[int]]  # context ids, continuation ids; at least one of each


class Encoder(Protocol):
    """Encodes text to token ids, in the form that the model was trained on."""

    @property
    def bos_id(self) -> int:
        """The id that begins a document."""
        ...

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        ...

    def begin(self, ids: Sequence[int]) -> list[int]:
        """The context that begins with `ids`: with BOS if the model's contexts have it, and never empty."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without BOS or EOS."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation (`role`, `content`), including BOS and the opening of the assistant's turn."""
        ...


class Subject(Protocol):
    """A model under evaluation: it scores given continuations and generates its own."""

    @property
    def encoder(self) -> Encoder:
        """The encoder for a task's texts."""
        ...

    @property
    def max_seq_len(self) -> int:
        """The context length in tokens: an upper bound on `len(context) + len(continuation) - 1` of a pair and on
        `len(prompt) + max_tokens` of a prompt."""
        ...

    def loglikelihoods(self, pairs: Sequence[Pair]) -> Sequence[float]:
        """log p(continuation | context) in nats, for each pair."""
        ...

    def greedy_loglikelihoods(self, pairs: Sequence[Pair]) -> Sequence[tuple[float, bool]]:
        """The same, and whether each of the continuation's ids is the likeliest one after those before it."""
        ...

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[str], beams: BeamConfig | None
    ) -> Sequence[str]:
        """Greedy continuations, or the best that a beam search finds, without the stop string or the end of the
        turn."""
        ...
