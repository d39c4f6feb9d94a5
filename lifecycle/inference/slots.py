"""The host's record of the slots, in NumPy: settings, positions, newest tokens. Dispatch arguments are built from
it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from lifecycle.inference.bad_words import forbidden
from lifecycle.inference.chunks import Chunk
from lifecycle.inference.decoding import DecodeRows
from lifecycle.inference.drafting import LONGEST, NONE
from lifecycle.inference.forbidden import NO_TOKEN, forbidden_rows, newest
from lifecycle.inference.forks import FORKS, ForkRows
from lifecycle.inference.grammar import ALL, no_masks
from lifecycle.inference.pages import PagePlan
from lifecycle.inference.programs import MAX_STOP_IDS, PromptRows
from lifecycle.inference.sampling import MAX_BIASES, SamplingParams, SamplingRows
from lifecycle.inference.scheduler import Fork
from lifecycle.kernels.adapted import NO_ADAPTER


def seed_words(seed: int) -> np.ndarray:
    """The two 32-bit halves of a seed, high first; negative seeds wrap around at 2^64."""
    return np.array([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


class SlotTable:
    """A row for each slot; returned arrays are copies, so that a device never reads later changes."""

    def __init__(
        self,
        num_slots: int,
        plan: PagePlan,
        length: int,
        vocab_size: int,
        num_groups: int = 1,
        has_context: bool = False,
        has_bank: bool = False,
        num_kept: int | None = None,
    ) -> None:
        """`length`: of a context, in the pages of `plan`; `vocab_size`: rows of the embedding. `has_context`: decode
        dispatches get all tokens of each slot, and those foreseen; `has_bank`: dispatches get each slot's adapter;
        `num_kept`: how many ids are recorded of each draw, None for no record."""
        self.num_groups, self.group_size = num_groups, num_slots // num_groups
        self.plan, self._vocab_size = plan, vocab_size
        self.pages = {kind: np.zeros((num_slots, -(-length // plan.size)), np.int32) for kind in plan.num_pages}
        # what is foreseen of each slot's output, then its tokens, each at its position
        self.context = np.full((num_slots, 2 * length if has_context else 0), NONE, np.int32)
        self._begin = self.context.shape[1] // 2
        self.token = np.zeros(num_slots, np.int32)
        self.position = np.zeros(num_slots, np.int32)
        self.remaining = np.zeros(num_slots, np.int32)
        self.stop_ids = np.full((num_slots, MAX_STOP_IDS), -1, np.int32)
        self.temperature = np.zeros(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int32)
        self.top_p = np.ones(num_slots, np.float32)
        self.min_p = np.zeros(num_slots, np.float32)
        self.typical_p = np.ones(num_slots, np.float32)
        self.repetition_penalty = np.ones(num_slots, np.float32)
        self.presence_penalty, self.frequency_penalty = np.zeros((2, num_slots), np.float32)
        self.bias_ids = np.full((num_slots, MAX_BIASES), NO_TOKEN, np.int32)
        self.biases = np.zeros((num_slots, MAX_BIASES), np.float32)
        words, until = forbidden_rows([])
        self.forbidden, self.forbidden_until = np.tile(words, (num_slots, 1, 1)), np.tile(until, (num_slots, 1))
        self.seed = np.zeros((num_slots, 2), np.uint32)
        self.allowed = no_masks(num_slots, vocab_size)
        self.kept = None if num_kept is None else np.zeros((num_slots, num_kept), np.int32)
        self.wants_top, self.wants_prompt = np.zeros((2, num_slots), bool)
        self.adapter, self._has_bank = np.full(num_slots, NO_ADAPTER, np.int32), has_bank

    def open(self, slot: int, params: SamplingParams, seed: int, stop_ids: Sequence[int], prompt_len: int = 0) -> None:
        """Assigns a slot to a request with a prompt of `prompt_len` tokens; it does not decode before `advance`."""
        self.temperature[slot] = params.temperature
        self.top_k[slot] = params.top_k
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.typical_p[slot] = params.typical_p
        self.repetition_penalty[slot] = params.repetition_penalty
        self.presence_penalty[slot] = params.presence_penalty
        self.frequency_penalty[slot] = params.frequency_penalty
        self.bias_ids[slot], self.biases[slot] = NO_TOKEN, 0.0
        for place, (token, bias) in enumerate(params.logit_bias):
            self.bias_ids[slot, place], self.biases[slot, place] = token, bias
        held = forbidden_rows(forbidden(params, stop_ids, prompt_len))
        self.forbidden[slot], self.forbidden_until[slot] = held
        self.seed[slot] = seed_words(seed)
        self.allowed[slot] = ALL
        self.wants_top[slot] = params.top_logprobs > 0
        self.wants_prompt[slot] = params.prompt_logprobs is not None
        self.stop_ids[slot] = -1
        few = list(stop_ids)[:MAX_STOP_IDS]
        self.stop_ids[slot, : len(few)] = few

    def advance(self, slot: int, token: int, position: int, remaining: int) -> None:
        """Sets the slot's newest token, its position, and how many more are wanted."""
        self.token[slot], self.position[slot], self.remaining[slot] = token, position, remaining
        self.context[slot, self._begin + position : self._begin + position + 1] = token

    def foresee(self, slot: int, prompt: Sequence[int], prediction: Sequence[int]) -> None:
        """Sets what drafts of a slot may be taken from beside its own tokens: what may follow its prompt. Only as much
        as an output can be."""
        foreseen = [*prompt[-LONGEST:], *prediction][: self._begin] if prediction else []
        self.context[slot, : self._begin] = NONE
        self.context[slot, : len(foreseen)] = foreseen

    def set_pages(self, slot: int, tables: Mapping[str, Sequence[int]]) -> None:
        """Sets the slot's pages by kind; what is no page (`NO_PAGE`) is never read."""
        for kind, table in tables.items():
            self.pages[kind][slot, : len(table)] = np.maximum(table, 0)

    def close(self, slot: int) -> None:
        """Empties the slot: greedy and without filters, so that it adds no sampling work."""
        self.open(slot, SamplingParams(temperature=0.0), 0, ())
        self.remaining[slot] = 0
        self.adapter[slot] = NO_ADAPTER

    def prompt_rows(self, chunks: Sequence[Chunk], prompts: Sequence[Sequence[int]]) -> PromptRows:
        """The arguments of a prefill dispatch: a row per group of slots, empty without a chunk."""
        slots, starts, sizes = np.zeros((3, self.num_groups), np.int32)
        is_first, before = np.zeros(self.num_groups, bool), np.zeros((self.num_groups, self._vocab_size), bool)
        tokens = np.zeros((self.num_groups, chunks[0].padded), np.int32)
        following = np.full_like(tokens, -1)
        recent = np.tile(newest([]), (self.num_groups, 1))
        for chunk, prompt in zip(chunks, prompts, strict=True):
            group = self.group(chunk.slot)
            slots[group], starts[group], sizes[group] = chunk.slot, chunk.start, chunk.size
            end = chunk.end
            tokens[group, : chunk.size] = prompt[chunk.start : end]
            if self.context.size:
                self.context[chunk.slot, self._begin : self._begin + end] = prompt[:end]
            recent[group] = newest(prompt[max(0, end - recent.shape[1]) : end])
            is_first[group] = chunk.is_first
            if chunk.is_first and self.repetition_penalty[chunk.slot] != 1:
                before[group, prompt[: chunk.start]] = True
            after = prompt[chunk.start + 1 : end + 1]
            following[group, : len(after)] = after
        held = [chunk.slot for chunk in chunks]
        return PromptRows(
            slot=_argument(slots % self.group_size),
            pages=self._pages(slots),
            is_first=_argument(is_first),
            before=_argument(before),
            recent=_argument(recent),
            tokens=_argument(tokens),
            start=_argument(starts),
            following=_argument(following),
            size=_argument(sizes),
            sampling=self._sampling(slots),
            want_top=_argument(self.wants_top[held].any()),
            want_prompt=_argument(self.wants_prompt[held].any()),
            adapters=self._adapters(slots),
        )

    def fork_rows(self, forks: Sequence[Sequence[Fork]]) -> ForkRows:
        """The arguments of a fork dispatch: of some groups of slots at most `FORKS` each, from one chunk."""
        slots, positions = np.zeros((2, self.num_groups), np.int32)
        own = np.zeros((self.num_groups, FORKS), np.int32)
        to, num_pages = np.full_like(own, self.group_size), self.plan.chunk // self.plan.size
        pages: dict[str, Any] = {kind: np.zeros((self.num_groups, num_pages), np.int32) for kind in self.pages}
        copies = {kind: np.full((*own.shape, num_pages), self.plan.num_pages[kind], np.int32) for kind in self.pages}
        for chunk, held in ((of_group[0].chunk, [fork.slot for fork in of_group]) for of_group in forks):
            group, count = self.group(chunk.slot), len(held)
            slots[group], positions[group] = chunk.slot % self.group_size, chunk.end
            own[group, :count], to[group, :count] = held, np.array(held) % self.group_size
            part = slice(chunk.start // self.plan.size, -(-chunk.end // self.plan.size))
            for kind, tables in self.pages.items():
                pages[kind][group, : part.stop - part.start] = tables[chunk.slot, part]
                copies[kind][group, :count, : part.stop - part.start] = tables[held, part]
        return ForkRows(
            slot=_argument(slots),
            to=_argument(to.ravel()),
            pages=_arguments(pages),
            copies=_arguments({kind: held.reshape(-1, num_pages) for kind, held in copies.items()}),
            position=_argument(positions),
            sampling=self._sampling(own.ravel()),
            want_top=_argument(any(self.wants_top[fork.slot] for of_group in forks for fork in of_group)),
        )

    def group(self, slot: int) -> int:
        """The group of a slot: its row in a prefill dispatch."""
        return slot // self.group_size

    def decode_rows(self, num_steps: int, may_draft: bool = True) -> DecodeRows:
        """The arguments of a decode dispatch of at most `num_steps` steps."""
        return DecodeRows(
            pages=self._pages(slice(None)),
            token=_argument(self.token),
            position=_argument(self.position),
            remaining=_argument(self.remaining),
            stop_ids=_argument(self.stop_ids),
            sampling=self._sampling(slice(None)),
            want_top=_argument((self.wants_top & (self.remaining > 0)).any()),
            num_steps=_argument(np.int32(num_steps)),
            may_draft=_argument(np.bool_(may_draft)),
            context=_argument(self.context) if self.context.size else None,
            adapters=self._adapters(slice(None)),
        )

    def _pages(self, slots: np.ndarray | slice) -> Any:
        return _arguments({kind: tables[slots] for kind, tables in self.pages.items()})

    def _adapters(self, slots: np.ndarray | slice) -> Any:
        return _argument(self.adapter[slots]) if self._has_bank else None

    def _sampling(self, slots: np.ndarray | slice) -> SamplingRows:
        columns: dict[str, Any] = {known.name: getattr(self, known.name) for known in fields(SamplingRows)}
        given: dict[str, Any] = {name: _argument(own[slots]) for name, own in columns.items() if own is not None}
        return SamplingRows(**given)


def _arguments(values: Mapping[str, np.ndarray]) -> Any:
    return {kind: _argument(own) for kind, own in values.items()}


def _argument(values: Any) -> Any:
    """A copy; `jax.jit` accepts NumPy arrays where JAX arrays are declared."""
    return np.array(values)
