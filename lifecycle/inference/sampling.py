"""From logits to tokens, for a batch whose rows each have their own settings.

What must hold: a row's token depends only on its own logits, settings, seed, position and earlier tokens, never on the
rest of the batch; so the same seed gives the same text. Top-k and top-p (Holtzman et al. 2020, "The Curious Case of
Neural Text Degeneration") are exact and need no sort: the threshold is built bit by bit over the 32 bits of a float,
mapped to an integer of the same order. Tokens that tie with the threshold are kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from pydantic import Field

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.inference.defaults import SamplingConfig
from lifecycle.inference.forbidden import (
    ANY,
    MAX_FORBIDDEN,
    MAX_FORBIDDEN_LENGTH,
    NO_TOKEN,
    without_forbidden,
)
from lifecycle.inference.grammar import ALL
from lifecycle.kernels.seldom import seldom

MAX_TOP_LOGPROBS = 20  # the most alternatives that a request can ask for, as in OpenAI's chat API
MAX_BIASES = 300  # tokens that a request can have a bias for
MAX_BIAS, MAX_REPEATED = 100.0, 2.0  # as in OpenAI's API
# Bits of a threshold that one pass over the logits decides, where a pass is bound by memory: 64 rows of 128,256 logits
# on 8 chips of a v5e, with all filters, by the compiler: 18.3 ms a step with 1 bit, 17.6 with 4
BITS_AT_ONCE = 4
NOT_FINITE = -2  # in place of a token: its logits are not finite
GREEDY_BELOW = 1e-5  # a lower temperature is greedy: float32 could not represent the scaled logits


type Repeated = Annotated[float, Field(ge=-MAX_REPEATED, le=MAX_REPEATED)]
type Id = Annotated[int, Field(ge=0, lt=NO_TOKEN)]
type Bias = tuple[Id, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]]
type Ids = Annotated[tuple[Id, ...], Field(min_length=1, max_length=MAX_FORBIDDEN_LENGTH)]
type Text = Annotated[str, Field(min_length=1)]


class SamplingParams(SamplingConfig):
    """How one request is sampled and when it ends."""

    # Subtracted from the logits of tokens that the output has: once, and for each time
    presence_penalty: Repeated = 0.0
    frequency_penalty: Repeated = 0.0
    logit_bias: Annotated[tuple[Bias, ...], Field(max_length=MAX_BIASES)] = ()  # (token, what its logit is raised by)
    bad_words: Annotated[tuple[Text, ...], Field(max_length=MAX_FORBIDDEN)] = ()  # that the output must not have
    bad_words_ids: Annotated[tuple[Ids, ...], Field(max_length=MAX_FORBIDDEN)] = ()  # the same, as tokens
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)  # None: a new one for each request
    max_tokens: int | None = Field(default=None, ge=1)  # None: to the end of the context
    min_tokens: int = Field(default=0, ge=0)  # before these neither an id nor a text ends the output
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)  # lower ones get slots first
    stop: tuple[Text, ...] = ()  # texts that end the output and are not part of it
    stop_ids: tuple[int, ...] | None = None  # None: the model's own
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)  # alternatives reported for each token
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)  # and for the prompt's; None: neither
    grammar: str | None = None  # what the output must be, in llguidance's form (`inference/grammar.py`); None: anything
    shown_ids: tuple[
        Annotated[int, Field(ge=0, lt=NO_TOKEN)], ...
    ] = ()  # special tokens whose names are part of the output's text


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingRows:
    """The settings of a batch's rows, as arrays."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    typical_p: Float[Array, " B"]
    repetition_penalty: Float[Array, " B"]
    presence_penalty: Float[Array, " B"]
    frequency_penalty: Float[Array, " B"]
    bias_ids: Int[Array, "B 300"]  # `NO_TOKEN`: none
    biases: Float[Array, "B 300"]
    forbidden: Int[Array, "B 64 16"]  # sequences, behind `ANY`; the last id is `NO_TOKEN`: none
    forbidden_until: Int[Array, "B 64"]  # the first position that the last token of each may have
    seed: Int[Array, "B 2"]  # uint32, the high and the low half
    allowed: Int[Array, "B words"]  # a bit for each token, the lowest first; `ALL` in each word: no grammar
    kept: Int[Array, "B kept"] | None = None  # as wide as what is recorded of each draw (`Drawn`); None: nothing is

    @property
    def take_the_likeliest(self) -> Bool[Array, ""]:
        """Whether each row's token is the likeliest one by the model's own logits."""
        is_plain = (self.repetition_penalty == 1) & (self.presence_penalty == 0) & (self.frequency_penalty == 0)
        is_plain &= (self.temperature < GREEDY_BELOW) & (self.bias_ids == NO_TOKEN).all(1)
        is_plain &= (self.forbidden[:, :, -1] == NO_TOKEN).all(1) & (self.allowed == ALL).all(1)
        return is_plain.all()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class History:
    """Which tokens each row has: for penalties, and the newest ones for what must not come next."""

    asked: Bool[Array, "B V"]  # in its prompt
    made: Int[Array, "B V"]  # how often its output has each
    recent: Int[Array, "B 15"]  # the newest of both, the last one last; `ANY` before the first

    @classmethod
    def empty(cls, num_rows: int, vocab_size: int) -> "History":
        """Of rows that have no token."""
        shape = (num_rows, vocab_size)
        recent = jnp.full((num_rows, MAX_FORBIDDEN_LENGTH - 1), ANY, jnp.int32)
        return cls(jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32), recent)

    def with_token(self, token: Int[Array, " B"], is_active: Bool[Array, " B"]) -> "History":
        """With one more token of the output in each active row."""
        made = self.made.at[jnp.arange(token.size), token].add(is_active)
        recent = jnp.concatenate([self.recent[:, 1:], token[:, None]], axis=1)
        return replace(self, made=made, recent=jnp.where(is_active[:, None], recent, self.recent))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """The distributions that tokens were drawn from: each token's log-probability there, and the ids that it could have
    been, the likeliest first; -1: no more. Without ids the log-probability is that at the temperature among all rows of
    the vocabulary, as a trainer computes it: also among those that are padding."""

    logprob: Float[Array, "*rows"]
    ids: Int[Array, "*rows kept"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampled:
    """Tokens, their log-probabilities under the unmodified distribution, and the likeliest tokens; -1: no token."""

    token: Int[Array, "*rows"]
    logprob: Float[Array, "*rows"]
    top_ids: Int[Array, "*rows 20"]
    top_logprobs: Float[Array, "*rows 20"]
    drawn: Drawn | None = None  # if it is recorded


def no_tokens(shape: tuple[int, ...], rows: SamplingRows | None = None) -> Sampled:
    """Places for tokens that are sampled by the settings `rows`."""
    top = (*shape, MAX_TOP_LOGPROBS)
    drawn = None
    if rows is not None and rows.kept is not None:
        drawn = Drawn(jnp.zeros(shape), jnp.full((*shape, rows.kept.shape[1]), -1, jnp.int32))
    return Sampled(jnp.full(shape, -1, jnp.int32), jnp.zeros(shape), jnp.zeros(top, jnp.int32), jnp.zeros(top), drawn)


def sample(
    logits: Float[Array, "B V"],
    rows: SamplingRows,
    positions: Int[Array, " B"],
    want_top: Bool[Array, ""],
    history: History,
    num_ids: int | None = None,
) -> Sampled:
    """A token for each row. `positions` are those of the new tokens; with the seed they make the key.

    Biases come first, then penalties, then what a grammar allows and nothing forbids, then the filters. `top_ids` and
    `top_logprobs` are zeros unless `want_top`. Ids from `num_ids` on (a vocabulary padded beyond its tokenizer) are
    never sampled. A row with a logit of NaN or +inf gets `NOT_FINITE`. Where draws are recorded with `kept` ids, a
    token is one of so many: of ids that tie for the last place those that come first.
    """
    is_greedy = rows.temperature < GREEDY_BELOW
    given = logits
    logits, logprobs = only_ids(logits, num_ids), only_ids(jax.nn.log_softmax(logits), num_ids)
    logits = _penalised(_biased(logits, rows), rows, history)
    is_constrained = (rows.allowed != ALL).any()
    logits = seldom(is_constrained.astype(jnp.int32), partial(_only_allowed, rows.allowed), logits)
    is_forbidding = (rows.forbidden[:, :, -1] != NO_TOKEN).any()
    forbidding = partial(without_forbidden, rows.forbidden, rows.forbidden_until, history.recent, positions)
    logits = seldom(is_forbidding.astype(jnp.int32), forbidding, logits)
    likeliest = argmax(logits)
    num_kept = 0 if rows.kept is None else rows.kept.shape[1]

    def drawn_from(filtered: Callable[[], Array]) -> Array:
        drawn = jax.lax.cond(is_greedy.all(), lambda: likeliest, lambda: _draw(filtered(), rows.seed, positions))
        return jnp.where(is_greedy, likeliest, drawn)

    if num_kept:
        among, ids = _kept(filter_logits(logits, rows), num_kept)
        token = drawn_from(lambda: among)
    else:
        among, ids = _at_temperature(given, rows), jnp.zeros((len(given), 0), jnp.int32)
        token = drawn_from(lambda: filter_logits(logits, rows))
    drawn = None if rows.kept is None else Drawn(_of_token(jax.nn.log_softmax(among), token), ids)
    values, top_ids = jax.lax.cond(want_top, top_logprobs, _no_top, logprobs)
    logprob = _of_token(logprobs, token)
    token = jnp.where(jnp.isnan(logprob), NOT_FINITE, token)  # one such logit makes all log-probabilities NaN
    return Sampled(token, logprob, top_ids, values, drawn)


def _of_token(values: Float[Array, "B V"], token: Int[Array, " B"]) -> Float[Array, " B"]:
    return jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]


def _kept(filtered: Float[Array, "B V"], num: int) -> tuple[Float[Array, "B V"], Int[Array, "B num"]]:
    """Filtered logits of at most `num` ids, and these ids, -1 behind the last."""
    values, ids = jax.lax.top_k(filtered, min(num, filtered.shape[1]))
    index = jnp.arange(filtered.shape[0])[:, None]
    filtered = jnp.full_like(filtered, -jnp.inf).at[index, ids].set(values)
    ids = jnp.where(values > -jnp.inf, ids, -1)
    return filtered, jnp.pad(ids, ((0, 0), (0, num - ids.shape[1])), constant_values=-1)


def only_ids(values: Float[Array, "B V"], num_ids: int | None) -> Float[Array, "B V"]:
    """Logits or log-probabilities with -inf for ids from `num_ids` on."""
    if num_ids is None or num_ids >= values.shape[-1]:
        return values
    return jnp.where(jnp.arange(values.shape[-1]) < num_ids, values, -jnp.inf)


def _only_allowed(allowed: Array, _: Any, logits: Array) -> Array:
    bits = (allowed[:, :, None] >> jnp.arange(32)) & 1
    bits = bits.reshape(allowed.shape[0], -1)[:, : logits.shape[1]]
    return jnp.where(bits == 1, logits, -jnp.inf)


def _biased(logits: Array, rows: SamplingRows) -> Array:
    def bias() -> Array:
        index = jnp.arange(logits.shape[0])[:, None]
        return logits.at[index, rows.bias_ids].add(rows.biases, mode="drop")

    return jax.lax.cond((rows.bias_ids != NO_TOKEN).any(), bias, lambda: logits)


def _penalised(logits: Array, rows: SamplingRows, history: History) -> Array:
    """Less likely repetitions: of what was seen (Keskar et al. 2019, "CTRL", section 4.1; transformers divides positive
    logits only), then of what was made (OpenAI's two penalties)."""

    def seen() -> Array:
        factor = rows.repetition_penalty[:, None]
        is_seen = history.asked | (history.made > 0)
        return jnp.where(is_seen, jnp.where(logits > 0, logits / factor, logits * factor), logits)

    def made(logits: Array) -> Array:
        frequency, presence = rows.frequency_penalty[:, None], rows.presence_penalty[:, None]
        return logits - frequency * history.made - presence * (history.made > 0)

    logits = jax.lax.cond((rows.repetition_penalty != 1).any(), seen, lambda: logits)
    is_for_made = (rows.presence_penalty != 0) | (rows.frequency_penalty != 0)
    return jax.lax.cond(is_for_made.any(), made, lambda logits: logits, logits)


def filter_logits(logits: Float[Array, "B V"], rows: SamplingRows) -> Float[Array, "B V"]:
    """Logits divided by the temperature, with `-inf` for removed tokens: top-k first, then top-p of the rest, then
    min-p, then typical-p of what is left. The largest is 0 before that."""
    scaled = _at_temperature(logits, rows)
    is_filtered = (rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0) | (rows.typical_p < 1)
    return jax.lax.cond(is_filtered.any(), _filter, lambda scaled, _: scaled, scaled, rows)


def _at_temperature(logits: Array, rows: SamplingRows) -> Array:
    return (logits - logits.max(-1, keepdims=True)) / jnp.maximum(rows.temperature, GREEDY_BELOW)[:, None]


def _filter(scaled: Array, rows: SamplingRows) -> Array:
    order = _ordered_bits(scaled)
    kth = _threshold(order, jnp.ones_like(scaled), rows.top_k.astype(jnp.float32))
    kept = (order >= kth[:, None]) | (rows.top_k <= 0)[:, None]
    probs = jnp.where(kept, jnp.exp(scaled), 0.0)
    edge = _threshold(order, probs, rows.top_p * probs.sum(-1))
    edge = jnp.minimum(edge, order.max(-1))  # a product that underflows to 0 would remove every token
    kept &= (order >= edge[:, None]) | (rows.top_p >= 1)[:, None]
    kept &= (jnp.exp(scaled) >= rows.min_p[:, None]) | (rows.min_p <= 0)[:, None]
    kept = seldom((rows.typical_p < 1).any().astype(jnp.int32), partial(_typical, scaled, rows.typical_p), kept)
    return jnp.where(kept, scaled, -jnp.inf)


def _typical(scaled: Array, typical_p: Array, _: Any, kept: Array) -> Array:
    """Of the kept tokens those whose surprise is nearest to its mean, up to a probability; ties with the last one are
    kept."""
    logprobs = jax.nn.log_softmax(jnp.where(kept, scaled, -jnp.inf))
    probs = jnp.exp(logprobs)
    mean = -jnp.where(probs > 0, probs * logprobs, 0.0).sum(-1, keepdims=True)
    order = _ordered_bits(-jnp.abs(logprobs + mean))  # of what is removed: -inf
    edge = _threshold(order, probs, typical_p * probs.sum(-1))
    is_typical = order >= jnp.minimum(edge, order.max(-1))[:, None]
    return kept & (is_typical | (typical_p >= 1)[:, None])


def _ordered_bits(x: Float[Array, "B V"]) -> Array:
    """Unsigned integers in the order of the floats (-0.0 just below 0.0)."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(order: Array, weights: Array, wanted: Float[Array, " B"]) -> Array:
    """The largest threshold such that the weights of tokens at or above it sum to at least `wanted`; 0 if there is
    none."""
    bits = 1 if platform() == "cpu" else BITS_AT_ONCE
    digits = jnp.arange(1, 1 << bits, dtype=jnp.uint32)

    def try_digit(i: Array, threshold: Array) -> Array:
        shift = (32 - bits * (i + 1)).astype(jnp.uint32)
        trials = threshold[:, None] | (digits << shift)
        sums = [jnp.where(order >= trials[:, j, None], weights, 0.0).sum(-1) for j in range(digits.size)]
        digit = (jnp.stack(sums, axis=1) >= wanted[:, None]).sum(1, dtype=jnp.uint32)  # the sums do not grow with it
        return threshold | (digit << shift)

    return jax.lax.fori_loop(0, 32 // bits, try_digit, jnp.zeros(order.shape[0], jnp.uint32))


def _draw(logits: Array, seed: Array, positions: Array) -> Array:
    """One draw per row by the Gumbel-max trick, each row with its own key."""

    def draw_row(row: Array, words: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), position)
        return jax.random.categorical(key, row)

    return jax.vmap(draw_row)(logits, seed, positions).astype(jnp.int32)


def argmax(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Index of the first maximum, by plain reductions: `jnp.argmax` takes 208 us for `[8, 4096]` on a CPU, this 38."""
    index = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    is_largest = logits == logits.max(-1, keepdims=True)
    return jnp.where(is_largest, index, logits.shape[-1] - 1).min(-1)


def top_logprobs(logprobs: Array) -> tuple[Array, Array]:
    """The `MAX_TOP_LOGPROBS` largest of each row, and their ids; -inf where a vocabulary has fewer."""
    num = min(MAX_TOP_LOGPROBS, logprobs.shape[-1])
    values, ids = jax.lax.top_k(logprobs, num)
    spare = ((0, 0), (0, MAX_TOP_LOGPROBS - num))
    return jnp.pad(values, spare, constant_values=-jnp.inf), jnp.pad(ids.astype(jnp.int32), spare)


def _no_top(logprobs: Array) -> tuple[Array, Array]:
    shape = (logprobs.shape[0], MAX_TOP_LOGPROBS)
    return jnp.zeros(shape, logprobs.dtype), jnp.zeros(shape, jnp.int32)
