"""A request's bad words and minimal length as sequences of tokens (`forbidden.py`): spelled, counted, or refused."""

from collections.abc import Sequence
from functools import lru_cache

from lifecycle.inference.forbidden import FOREVER, MAX_FORBIDDEN, MAX_FORBIDDEN_LENGTH, Forbidden, ForbiddenError
from lifecycle.inference.sampling import SamplingParams
from lifecycle.text.interface import Tokenizer

MAX_KNOWN = 4096  # words whose ids are kept: the choices of a request have the same ones
BEFORE = "\n"  # what a tokenizer puts before a text it puts before this


def settled(params: SamplingParams, tokenizer: Tokenizer, stop_ids: Sequence[int], max_tokens: int) -> SamplingParams:
    """The settings of an output of at most `max_tokens` with the ids that end it, the model's unless they have others,
    and with the ids of their `bad_words` among the `bad_words_ids`. Raises `ForbiddenError`."""
    ends = tuple(stop_ids if params.stop_ids is None else params.stop_ids)
    if params.min_tokens > max_tokens:
        raise ForbiddenError("min_tokens", f"{params.min_tokens} of an output of at most {max_tokens}")
    if params.min_tokens and params.grammar is not None:
        reason = "a grammar, a schema or a tool's strict call says where the output ends; leave one of them out"
        raise ForbiddenError("min_tokens", reason)
    if unknown := [i for ids in params.bad_words_ids for i in ids if i >= tokenizer.vocab_size]:
        reason = f"token id {unknown[0]} is outside the tokenizer's {tokenizer.vocab_size}"
        raise ForbiddenError("bad_words_ids", reason)
    spelled = (ids for word in params.bad_words for ids in spellings(word, tokenizer))
    found = tuple(_shortest([*params.bad_words_ids, *spelled]))
    if (count := len(found) + len(ends) * (params.min_tokens > 0)) > MAX_FORBIDDEN:
        raise ForbiddenError(
            "bad_words",
            f"these are {count} sequences of tokens (each word with and without a space before it, and the ids that "
            f"min_tokens keeps away); a request has room for {MAX_FORBIDDEN}",
        )
    return params.model_copy(update={"bad_words_ids": found, "stop_ids": ends})


@lru_cache(MAX_KNOWN)
def spellings(word: str, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """A word's ids where a text begins, inside a text, and after a space: vLLM's rule, which adds a space too.

    Spaces before the word say nothing. Raises `ForbiddenError` for a word of too many tokens.
    """
    found: list[tuple[int, ...]] = []
    for text in (bare := word.lstrip(" ") or word, f" {bare}"):
        found += [tuple(tokenizer.encode(text)), tuple(_inside(text, tokenizer))]
    kept = _shortest([ids for ids in found if ids])
    if longest := [ids for ids in kept if len(ids) > MAX_FORBIDDEN_LENGTH]:
        reason = f"{word!r} has {len(longest[0])} tokens; one may have {MAX_FORBIDDEN_LENGTH}"
        raise ForbiddenError("bad_words", reason)
    return tuple(kept)


def _inside(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text that stands behind another; none where they are not its own."""
    before, both = tokenizer.encode(BEFORE), tokenizer.encode(BEFORE + text)
    return both[len(before) :] if both[: len(before)] == before else []


def _shortest(every: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Without those that end with another one, which says more."""
    known = {tuple(ids) for ids in every}
    ends = {ids: [ids[place:] for place in range(1, len(ids))] for ids in known}
    return [ids for ids in dict.fromkeys(map(tuple, every)) if known.isdisjoint(ends[ids])]


def forbidden(params: SamplingParams, stop_ids: Sequence[int], prompt_len: int) -> list[Forbidden]:
    """What an output of `settled` settings must not have; `prompt_len` tokens come before it."""
    early = [((token,), prompt_len + params.min_tokens) for token in stop_ids] if params.min_tokens else []
    return [*((ids, FOREVER) for ids in params.bad_words_ids), *early]
