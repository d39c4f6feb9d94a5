"""The loop of decode steps on the device: each makes one token for every row, and one more for each accepted draft.

A step feeds a row's newest token and the drafts behind it, and samples at each of these positions as if the tokens
before it were the row's own. A draft is accepted if it is the token that was sampled in its place. As the random
numbers of a position depend on the row's seed and the position only, accepted drafts are what plain decoding samples,
greedy or not, whoever drafts them (Daliri et al. 2024, "Coupling without communication and drafter-invariant
speculative decoding"); the rejection of Leviathan et al. 2023 keeps the distribution only. What a rejected draft leaves
in the cache lies behind the newest token, where nobody looks before the next step writes over it.

What must hold: a row that is not decoding is padding: it reads the cache and writes nothing.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from lifecycle.core.typing import Array, Bool, Float, Int
from lifecycle.inference.drafting import NONE, Computed, Drafter
from lifecycle.inference.grammar import ALL
from lifecycle.inference.sampling import NOT_FINITE, History, Sampled, SamplingRows, no_tokens, sample
from lifecycle.inference.scheduler import MAX_STEPS
from lifecycle.inference.state import SlotState
from lifecycle.model.cache import Tables
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward_cached_taking
from lifecycle.model.embedding import logits, logits_of_own_rows
from lifecycle.model.params import Params
from lifecycle.parallel.collectives import all_gather, axis_index, axis_size, pmax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeRows:
    """The state of each slot for a decode dispatch."""

    pages: Tables
    token: Int[Array, " B"]  # the newest token, not yet in the cache
    position: Int[Array, " B"]  # of that token
    remaining: Int[Array, " B"]  # tokens still wanted; 0: the slot is not decoding
    stop_ids: Int[Array, "B 8"]  # -1: none
    sampling: SamplingRows
    want_top: Bool[Array, ""]
    num_steps: Int[Array, ""]  # of this dispatch, at most `MAX_STEPS`
    may_draft: Bool[Array, ""]
    adapters: Int[Array, " B"] | None = None  # places in the bank, if there is one
    # What is foreseen (`NONE`: nothing), then all tokens up to the newest, a half each, for a drafter that reads them
    context: Int[Array, "B L"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoded:
    """What a dispatch made, in order: in each of a row's steps one token, and one for each accepted draft."""

    sampled: Sampled  # [B, MAX_STEPS * (1 + the most drafts)]; -1 between them
    num_steps: Int[Array, " B"]  # in which the row decoded
    num_drafts: Int[Array, " B"]  # that these verified

    @property
    def num_tokens(self) -> Int[Array, " B"]:
        """How many tokens were made for each row, with the `NOT_FINITE` that ends it."""
        return (self.sampled.token != -1).sum(1)


type _Carry = tuple[Array, Array, DecodeRows, Decoded, SlotState]


def decode_steps(
    config: ModelConfig, num_ids: int, drafter: Drafter | None, params: Params, state: SlotState, rows: DecodeRows
) -> tuple[Decoded, SlotState]:
    """Up to `num_steps` steps, on this device's shards. Ends early once no slot is decoding."""
    state = replace(state, cache=replace(state.cache, tables=rows.pages))
    step_of = _Step(config, num_ids, drafter, params)

    def go_on(carry: _Carry) -> Array:
        step, is_any_active, rows, _, _ = carry
        return (step < rows.num_steps) & is_any_active

    def one_step(carry: _Carry) -> _Carry:
        step, _, rows, decoded, state = carry
        new, num_drafts, rows, state = step_of(rows, state)
        decoded = Decoded(
            jax.tree.map(lambda steps, value: steps.at[:, step].set(value), decoded.sampled, new),
            decoded.num_steps + (new.token[:, 0] != -1),
            decoded.num_drafts + num_drafts,
        )
        return step + 1, _is_any_active(rows), rows, decoded, state

    num_rows, none = rows.token.size, jnp.zeros_like(rows.token)
    nothing = Decoded(no_tokens((num_rows, MAX_STEPS, step_of.num_positions), rows.sampling), none, none)
    start = (jnp.zeros((), jnp.int32), _is_any_active(rows), rows, nothing, state)
    *_, decoded, state = jax.lax.while_loop(go_on, one_step, start)
    in_order = jax.tree.map(lambda x: x.reshape(num_rows, x.shape[1] * x.shape[2], *x.shape[3:]), decoded.sampled)
    return replace(decoded, sampled=in_order), replace(state, cache=replace(state.cache, tables={}))


def _is_any_active(rows: DecodeRows) -> Bool[Array, ""]:
    """Whether any slot decodes; the same on all devices, so that all make the same number of steps."""
    return pmax(rows.remaining.max(), "batch") > 0


type _Made = tuple[Sampled, Array, DecodeRows, SlotState]  # tokens [B, T], drafts of each row, and what is then


@dataclass(frozen=True)
class _Step:
    """One step of all rows."""

    config: ModelConfig
    num_ids: int
    drafter: Drafter | None
    params: Params

    @property
    def num_positions(self) -> int:
        """The most tokens that a step makes for a row."""
        return 1 if self.drafter is None else 1 + self.drafter.num_tokens

    def __call__(self, rows: DecodeRows, state: SlotState) -> _Made:
        drafter = self.drafter
        if drafter is None:
            return self._verified(None, rows, state)
        may_draft = self._may_draft(rows, drafter.num_tokens)
        drafts, held = jax.lax.cond(
            rows.may_draft,
            lambda held: drafter.drafts(self.params, rows, may_draft, state.history, held),
            lambda held: (jnp.full(may_draft.shape, NONE), held),
            state.drafter,
        )
        drafts, state = jnp.where(may_draft, drafts, NONE), replace(state, drafter=held)
        is_any = pmax((drafts >= 0).any().astype(jnp.int32), "batch") > 0  # else a plain step, which costs less
        return jax.lax.cond(is_any, self._verified, self._plain, drafts, rows, state)

    def _may_draft(self, rows: DecodeRows, num: int) -> Bool[Array, "B k"]:
        """Not beyond the tokens that are wanted, nor where a grammar says what comes next: it says so of one token."""
        is_free = rows.may_draft & (rows.sampling.allowed == ALL).all(-1)
        return is_free[:, None] & (jnp.arange(num) < rows.remaining[:, None] - 1)

    def _plain(self, drafts: Array, rows: DecodeRows, state: SlotState) -> _Made:
        new, num_drafts, rows, state = self._verified(None, rows, state)
        none = no_tokens((rows.token.size, drafts.shape[1]), rows.sampling)
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), new, none), num_drafts, rows, state

    def _verified(self, drafts: Int[Array, "B k"] | None, rows: DecodeRows, state: SlotState) -> _Made:
        fed = _Fed.of(rows, drafts)
        place = jnp.arange(fed.tokens.shape[1])
        positions = jnp.where(fed.is_fed, rows.position[:, None] + place, state.cache.length)
        given = self.config, self.params, jnp.maximum(fed.tokens, 0), positions, state.cache
        layers = () if self.drafter is None else self.drafter.layers
        hidden, taken, cache = forward_cached_taking(*given, layers)
        new, history = self._sampled(hidden, fed, rows.want_top, state.history)
        if state.drafter is not None:
            what = "token" if drafts is None else "drafts"
            computed = Computed(fed.tokens, new.token, positions, hidden, taken, rows.pages, what)
            state = self._followed(computed, state)
        state = replace(state, cache=cache, history=history)
        return new, jnp.maximum(fed.is_fed.sum(1) - 1, 0), _advance(rows, new.token), state

    def _followed(self, computed: Computed, state: SlotState) -> SlotState:
        """The state with what the drafter has seen of a step."""
        assert self.drafter is not None
        held = state.drafter
        newest, cache = self.drafter.follow(self.params, computed, held.newest, held.cache)
        newest = jnp.where(computed.following[:, :1] >= 0, newest, held.newest)
        return replace(state, drafter=replace(held, cache=cache, newest=newest))

    def _sampled(
        self, hidden: Float[Array, "B T D"], fed: "_Fed", want_top: Array, history: History
    ) -> tuple[Sampled, History]:
        """The rows' next tokens. Devices that share the vocabulary divide the rows among them, if these suffice: 32
        rows of 128,256 logits on 8 chips of a v5e, all filtered, take a third of a step where each filters all."""
        size, flat = axis_size("vocab"), hidden.reshape(-1, hidden.shape[-1])
        if size == 1 or hidden.shape[0] % size:
            return self._accepted(logits(self.config, self.params, flat), fed, want_top, history)
        num = hidden.shape[0] // size
        begin = axis_index("vocab") * num
        own, own_history = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, begin, num), (fed, history))
        scores = logits_of_own_rows(self.config, self.params, flat)
        new, _ = self._accepted(scores, own, want_top, own_history)
        new = jax.tree.map(lambda x: all_gather(x, "vocab", 0), new)
        for place, made in enumerate(new.token.T):
            history = history.with_token(fed.tokens[:, place], made >= 0)
        return new, history

    def _accepted(
        self, scores: Float[Array, "rows V"], fed: "_Fed", want_top: Array, history: History
    ) -> tuple[Sampled, History]:
        """Samples at one position after the other, for as long as the next token fed is the one sampled."""
        scores = scores.reshape(*fed.tokens.shape, -1)

        def one(carry: tuple[History, Array], place: Array) -> tuple[tuple[History, Array], Sampled]:
            history, is_own = carry
            history = history.with_token(fed.tokens[:, place], is_own)
            position = fed.position + place + 1
            new = sample(scores[:, place], fed.sampling, position, want_top, history, self.num_ids)
            is_stop = (new.token[:, None] == fed.stop_ids).any(-1)
            shown = replace(new, token=jnp.where(is_own, new.token, -1))
            return (history, is_own & (new.token == fed.drafts[:, place]) & ~is_stop), shown

        places = jnp.arange(fed.tokens.shape[1])
        (history, _), new = jax.lax.scan(one, (history, fed.is_fed[:, 0]), places, unroll=places.size == 1)
        return jax.tree.map(lambda x: x.swapaxes(0, 1), new), history


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Fed:
    """The tokens that a step feeds, and what sampling behind them needs of their rows."""

    tokens: Int[Array, "B T"]
    is_fed: Bool[Array, "B T"]
    drafts: Int[Array, "B T"]  # the token fed behind each; -1: there is none
    position: Int[Array, " B"]  # of the first
    stop_ids: Int[Array, "B 8"]
    sampling: SamplingRows

    @classmethod
    def of(cls, rows: DecodeRows, drafts: Int[Array, "B k"] | None) -> "_Fed":
        """Each row's newest token, and its drafts up to the first that there is not."""
        given = rows.position, rows.stop_ids, rows.sampling
        is_fed, none = (rows.remaining > 0)[:, None], jnp.full((rows.token.size, 1), -1, jnp.int32)
        if drafts is None:
            return cls(rows.token[:, None], is_fed, none, *given)
        drafts = jnp.where(jnp.cumsum(drafts < 0, axis=1) == 0, drafts, -1)
        tokens, following = (jnp.concatenate(x, axis=1) for x in ([rows.token[:, None], drafts], [drafts, none]))
        return cls(tokens, is_fed & jnp.concatenate([none < 0, drafts >= 0], axis=1), following, *given)


def _advance(rows: DecodeRows, made: Int[Array, "B T"]) -> DecodeRows:
    """The rows with a step's new tokens, -1 for none."""
    count = (made != -1).sum(1)
    newest = jnp.take_along_axis(made, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    token = jnp.where(count > 0, newest, rows.token)
    is_stop = (token[:, None] == rows.stop_ids).any(-1) | (token == NOT_FINITE)
    remaining = jnp.where(is_stop, 0, rows.remaining - count)
    context = rows.context
    if context is not None:
        places = context.shape[1] // 2 + rows.position[:, None] + 1 + jnp.arange(made.shape[1])
        places = jnp.where(made >= 0, places, context.shape[1])
        context = context.at[jnp.arange(count.size)[:, None], places].set(made, mode="drop")
    return replace(rows, token=token, position=rows.position + count, remaining=remaining, context=context)
