"""The evaluation's `Encoder`, made of the text room's tokenizer and chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lifecycle.core.config import ConfigError
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.interface import Tokenizer


@dataclass(frozen=True)
class TextEncoder:
    """Encodes as the model was trained; `chat` is None for a base model, which has no turns."""

    tokenizer: Tokenizer
    chat: ChatTemplate | None = None

    @property
    def bos_id(self) -> int:
        """The tokenizer's BOS id."""
        return self.tokenizer.bos_id

    @property
    def eos_id(self) -> int:
        """The tokenizer's EOS id."""
        return self.tokenizer.eos_id

    def begin(self, ids: Sequence[int]) -> list[int]:
        """The context that begins with `ids`, with BOS if the tokenizer's rule has it; see `Tokenizer.begin`."""
        return self.tokenizer.begin(ids)

    def encode(self, text: str) -> list[int]:
        """The token ids of plain text, without special tokens."""
        return self.tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The token ids of a conversation up to the assistant's next turn.

        Raises `ConfigError` without a chat template.
        """
        if self.chat is None:
            raise ConfigError("this model has no chat template; set `chat: false` in the task to ask it in plain text")
        return self.chat.render(messages, add_generation_prompt=True).ids
