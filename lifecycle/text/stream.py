"""Text from a stream of token ids, never splitting a character.

A token may end inside a UTF-8 character. `StreamDecoder` holds such bytes back until the character is complete or
cannot become one; so the pieces are always valid text and their concatenation equals `decode` of all ids.
"""

import codecs
from collections.abc import Collection

from lifecycle.text.interface import Tokenizer


class StreamDecoder:
    """`feed(id)` returns the text that is complete, often empty; `finish()` returns the rest."""

    def __init__(self, tokenizer: Tokenizer, shown_ids: Collection[int] = (), strips: bool = True) -> None:
        """`shown_ids`: special tokens whose names are text. `strips`: whether a space that the tokenizer puts before
        every text is left out, as in `decode`."""
        self._tokenizer = tokenizer
        self._shown_ids = frozenset(shown_ids)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = strips and tokenizer.strips_leading_space  # until the first byte of text

    def feed(self, token_id: int) -> str:
        """The text that this token completes; an incomplete character waits for the next token."""
        if self._tokenizer.is_special(token_id) and token_id not in self._shown_ids:
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._strip and data:
            data, self._strip = data.removeprefix(b" "), False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """The rest: an unfinished character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)
