"""Output that a grammar decides: which tokens may come next, by llguidance.

A grammar is text in llguidance's form: Lark rules, or the JSON in which it writes a schema or a regular expression. It
is compiled before its request is queued, so that a fault in it is the caller's error, and once for all requests that
have it. What must hold: a token that is not allowed is never sampled, so an output that ends by itself is in the
grammar; a grammar that exceeds a limit ends its own request only.

llguidance walks a tree of the vocabulary's bytes along a lexer and an Earley parser; its limits are on work, not on
time. A word of a mask is 32 tokens, the lowest bit the first (`llguidance.numpy`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.numpy import fill_next_token_bitmask_par

from lifecycle.text.interface import Tokenizer

MAX_GRAMMAR = 1 << 18  # characters; an enumeration of 10,000 words compiles in 0.2 s
MAX_COMPILED = 64  # grammars that are kept for further requests
# Of 151,261 tokens, CPU time of a mask: a JSON schema's 0.07 ms (median) and 2 ms (at most), that of an ambiguous
# grammar up to its end 10 and 65 ms; with llguidance's own limits 55 and 502 ms. An object has room for 240 optional
# properties.
LIMITS = LLParserLimits(
    max_lexer_states=20_000, max_items_in_row=1000, step_max_items=20_000, step_lexer_fuel=50_000, verbose_errors=False
)
NOTHING = "no text satisfies it"
LEAD = "\n"  # takes the space that a tokenizer puts before a text
ALL = -1  # a word of a mask that allows every token


class GrammarError(ValueError):
    """A grammar that is faulty, cannot be satisfied, or needs more work than the limits allow."""


class Constraint:
    """An output's place in its grammar: `push` each token; `Grammars.fill` says which may follow."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    def copy(self) -> "Constraint":
        """The same, to go on by itself."""
        return Constraint(self.matcher.deep_copy())

    def push(self, token: int) -> bool:
        """Adds a token; whether nothing more may follow. Raises `GrammarError` if a limit is exceeded."""
        self.matcher.consume_token(token)
        self.check()
        return self.matcher.is_stopped()

    def check(self) -> None:
        """Raises `GrammarError` if a limit was exceeded."""
        if self.matcher.is_error():
            raise GrammarError(f"grammar: {_said(self.matcher.get_error())}")


class Grammars:
    """Compiles grammars for one tokenizer, from any thread."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int], vocab_size: int | None = None) -> None:
        """`stop_ids` may end an output where the grammar can end. `vocab_size`: the model's; None: the tokenizer's."""
        self._tokenizer, self._vocab_size = tokenizer, vocab_size or tokenizer.vocab_size
        self._stop_ids = stop_ids
        self._compiled = lru_cache(MAX_COMPILED)(self._compile)

    def constraint(self, grammar: str) -> Constraint:
        """The beginning of all outputs in a grammar: `copy` it for one. Raises `GrammarError`."""
        return Constraint(self._compiled(grammar))

    def fill(self, constraints: Mapping[int, Constraint], masks: np.ndarray) -> None:
        """Writes which tokens may come next into a row of `masks`, int32 `[rows, words]`, for each constraint. Rows of
        constraints that now fail their `check` have no use."""
        if constraints:
            fill_next_token_bitmask_par(self._threads, [(c.matcher, row) for row, c in constraints.items()], masks)

    def warm_up(self) -> None:
        """Reads the vocabulary, so that no request waits for it: 0.9 CPU-seconds for 151,261 tokens."""
        self.constraint("start: /(?s:.*)/")

    def _compile(self, grammar: str) -> LLMatcher:
        if len(grammar) > MAX_GRAMMAR:
            raise GrammarError(f"grammar: it has {len(grammar)} characters, more than {MAX_GRAMMAR}")
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=LIMITS)
        Constraint(matcher).check()
        matcher.compute_bitmask()  # a grammar that is too large for a mask is refused before its request is queued
        Constraint(matcher).check()
        if matcher.is_stopped() and not matcher.is_accepting():
            raise GrammarError(f"grammar: {NOTHING}")
        return matcher

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        """The tokenizer's bytes as llguidance's tree."""
        words = _Words(self._tokenizer, self._vocab_size)
        known = (i for i in (self._tokenizer.eos_id, *self._stop_ids) if i < self._tokenizer.vocab_size)
        tree = LLTokenizer(TokenizerWrapper(words), eos_token=list(dict.fromkeys(known)))
        words.greedy = tree.greedy_tokenize
        return tree

    @cached_property
    def _threads(self) -> LLExecutor:
        return LLExecutor()


class _Words:
    """A tokenizer as llguidance asks for it: calling it gives tokens of a text that stands anywhere, byte for byte.

    What a grammar leaves no choice about is made of these tokens. A tokenizer may change a text (a space before it,
    characters put together); then tokens are found by their bytes.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._encode = tokenizer.encode
        self.greedy: Callable[[str], list[int]] | None = None
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self.tokens += [b""] * (vocab_size - tokenizer.vocab_size)  # never allowed
        self.special_token_ids = [i for i in tokenizer.special_ids.values() if i < tokenizer.vocab_size]
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text, not bytes")  # asked once, to see which of them it takes
        for lead in ("", LEAD):
            ids = self._encode(lead + text)
            while lead and ids and self.tokens[ids[0]].lstrip(b" ") in (b"", LEAD.encode()):
                del ids[0]
            if b"".join(self.tokens[i] for i in ids) == text.encode():
                return ids
        assert self.greedy is not None, "it is set with the tree"
        return self.greedy(text)


def no_masks(num_rows: int, vocab_size: int) -> np.ndarray:
    """Rows of masks that allow every token."""
    return np.full((num_rows, -(-vocab_size // 32)), ALL, np.int32)


def _said(message: str) -> str:
    """llguidance's words without pictures, and without most of a grammar that they quote."""
    lines = [line.strip(" :")[:250] for line in message.partition("<non-verbose")[0].splitlines()]
    if not lines or lines[0].startswith("NoExtension"):
        return NOTHING
    return ": ".join([lines[0], *(line for line in lines if line.startswith("error:"))])
