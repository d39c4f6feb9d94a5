"""What an evaluation needs of a model, as two narrow protocols: tasks are independent of the implementation."""

from collections.abc import Mapping, Sequence
from typing import Protocol

type Pair = tuple[list[int], list[int]]  # context ids, continuation ids; at least one of each


class Encoder(Protocol):
    """Text to ids, as the model was trained on them."""

    @property
    def bos_id(self) -> int:
        """The id that begins a document."""
        ...

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without BOS or EOS."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation (`role`, `content`), BOS and the opening of the assistant's turn included."""
        ...


class Subject(Protocol):
    """A model under evaluation: it scores given continuations and generates its own."""

    @property
    def encoder(self) -> Encoder:
        """Encodes a task's texts."""
        ...

    @property
    def max_seq_len(self) -> int:
        """The context: a pair's `len(context) + len(continuation) - 1`, and a prompt's `len(prompt) + max_tokens`, are
        at most this."""
        ...

    def loglikelihoods(self, pairs: Sequence[Pair]) -> Sequence[float]:
        """log p(continuation | context) in nats, for each pair."""
        ...

    def generate(self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[str]) -> Sequence[str]:
        """Greedy continuations, without the stop string or the end of the turn."""
        ...
