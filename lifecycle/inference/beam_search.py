"""Beam search with the engine's own programs: each beam is a slot that makes one token at a time.

A dispatch tells the likeliest next tokens of each slot; which of them come next is decided on the host (`beams.py`).
What must hold: beams share the pages of their common beginning, and each writes only into pages of its own: where two
beams go on from one, the page that is not full is copied.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import batched
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lifecycle.core.config import ConfigError
from lifecycle.inference.beams import BeamConfig, Beams, Hypothesis
from lifecycle.inference.chunks import Chunk, prompt_chunks
from lifecycle.inference.generation import NotFiniteError, is_finite
from lifecycle.inference.intake import ContextLengthError
from lifecycle.inference.model import Model
from lifecycle.inference.pages import NO_PAGE, PagePlan
from lifecycle.inference.programs import Programs, num_groups
from lifecycle.inference.sampling import MAX_TOP_LOGPROBS, Sampled, SamplingParams
from lifecycle.inference.slots import SlotTable
from lifecycle.inference.state import SlotState
from lifecycle.model.cache import page_kind
from lifecycle.model.config import ModelConfig
from lifecycle.model.stacks import layer_groups
from lifecycle.parallel.mesh import AnyMesh, spec, tree_specs

# The likeliest tokens of each slot are asked for, and no sampling work
ASKING = SamplingParams(temperature=0.0, top_logprobs=MAX_TOP_LOGPROBS, stop_ids=())
NOWHERE = 2**31 - 1  # a page behind all others: nothing is copied

type Copies = Mapping[str, Sequence[tuple[int, int]]]  # by kind of pages: from, to
type Following = Sequence[tuple[int, float]]  # the likeliest next tokens and their log-probabilities


@dataclass(frozen=True)
class Found:
    """An output: its text, without what ended it, its tokens, the sum of their log-probabilities, and the score."""

    text: str
    tokens: tuple[int, ...]
    logprob: float
    score: float


def beam_search(
    model: Model,
    prompts: Sequence[Sequence[int]],
    config: BeamConfig,
    max_tokens: int,
    stop: Sequence[str] = (),
    num_slots: int = 8,
    mesh: Mesh | None = None,
) -> list[list[Found]]:
    """The best outputs of each prompt of token ids, at most `num_beams`, the best first.

    `num_slots` is rounded up to a number of prompts in each of the mesh's groups. An output ends with the model's stop
    ids, or before a stop string. Raises `ContextLengthError` for what does not fit the context, and `ConfigError` for
    more beams than `MAX_TOP_LOGPROBS` likeliest tokens suffice for and for a mesh that does not fit,
    and `NotFiniteError`.
    """
    most = MAX_TOP_LOGPROBS - len(model.stop_ids)
    if config.num_beams > most:
        raise ConfigError(
            f"num_beams={config.num_beams}: at most {most} for a model with {len(model.stop_ids)} stop ids, since "
            f"each beam has its {MAX_TOP_LOGPROBS} likeliest tokens"
        )
    length = max((len(prompt) + max_tokens for prompt in prompts), default=0)
    if length > model.config.max_seq_len or not all(prompts):
        raise ContextLengthError(
            f"the context holds {model.config.max_seq_len} tokens and a prompt at least one, but up to {length} were "
            f"asked for ({max_tokens} to generate); shorten them"
        )
    search = _Search(model, config, num_slots, mesh)
    found = [outputs for part in batched(prompts, search.num_prompts) for outputs in search.run(part, max_tokens, stop)]
    return [[_read(model, own, stop) for own in outputs] for outputs in found]


def _read(model: Model, own: Hypothesis, stop: Sequence[str]) -> Found:
    said = own.tokens[:-1] if own.tokens[-1] in model.stop_ids else own.tokens
    text = model.tokenizer.decode(said)
    end = min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))
    return Found(text[:end], own.tokens, own.logprob, own.score)


class _Search:
    """Slots for the beams of `num_prompts` prompts at a time."""

    def __init__(self, model: Model, config: BeamConfig, num_slots: int, mesh: Mesh | None) -> None:
        self._model, self._config = model, config
        groups = 1 if mesh is None else num_groups(mesh)
        self._each = math.ceil(max(num_slots, 1) / (groups * config.num_beams))  # prompts of a group
        self.num_prompts = groups * self._each
        slots, length = self.num_prompts * config.num_beams, model.config.max_seq_len
        self._programs = _Programs(model.config, model.params, slots, length, model.tokenizer.vocab_size, mesh)
        self._table = SlotTable(slots, self._programs.plan, length, model.config.vocab_size, groups)
        for slot in range(slots):
            self._table.open(slot, ASKING, 0, ())

    def run(self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[str]) -> list[list[Hypothesis]]:
        """The best outputs of each prompt."""
        decode, ends = self._model.tokenizer.decode, self._model.stop_ids

        def is_end(tokens: tuple[int, ...]) -> bool:
            return tokens[-1] in ends or (bool(stop) and any(text in decode(tokens) for text in stop))

        asked = [
            _Asked(prompt, self._first_slot(place), Beams(self._config, max_tokens, len(ends), is_end),
                   BeamPages(self._programs.plan, self._each, place // self._num_groups))
            for place, prompt in enumerate(prompts)
        ]  # fmt: skip
        for own in asked:
            own.step([self._prefilled(own)])
        while any(own.beams.running for own in asked):
            sampled = self._decode(asked)
            for own in asked:
                slots = range(own.slot, own.slot + len(own.beams.running))
                own.step([_following(sampled, slot, int(self._table.position[slot]) + 1) for slot in slots])
        return [own.beams.finished for own in asked]

    @property
    def _num_groups(self) -> int:
        return self.num_prompts // self._each

    def _first_slot(self, place: int) -> int:
        """Of a prompt; neighbours are in different groups."""
        number, group = divmod(place, self._num_groups)
        return (group * self._each + number) * self._config.num_beams

    def _prefilled(self, own: "_Asked") -> Following:
        """What may follow a prompt, whose pages are those of its first slot."""
        sampled: Sampled | None = None
        for number, cut in enumerate(prompt_chunks(len(own.prompt), self._programs.plan.buckets)):
            chunk = Chunk(own.slot, *cut, is_first=number == 0)
            own.pages.extend(chunk.start, chunk.end)
            self._table.set_pages(own.slot, own.pages.tables[0])
            sampled, *_ = self._programs.prefill(self._table.prompt_rows([chunk], [own.prompt]))
        assert sampled is not None, "a prompt has a token"
        return _following(sampled, self._table.group(own.slot), len(own.prompt))

    def _decode(self, asked: Sequence["_Asked"]) -> Sampled:
        """A step of all running beams, each with the newest of its tokens."""
        nothing = np.full((2, self.num_prompts * self._config.num_beams), NOWHERE, np.int32)
        copies = {kind: nothing.copy() for kind in self._programs.plan.num_pages}
        self._table.remaining[:] = 0
        for own in asked:
            for place, beam in enumerate(own.beams.running):
                slot, position = own.slot + place, len(own.prompt) + len(beam.tokens) - 1
                self._table.advance(slot, beam.tokens[-1], position, 1)
                self._table.set_pages(slot, own.pages.tables[place])
            for kind, pairs in own.copies.items():
                for place, pair in enumerate(pairs):
                    copies[kind][:, own.slot + place] = pair
        if any((pages != NOWHERE).any() for pages in copies.values()):
            self._programs.copy_pages(copies)
        return self._programs.decode(self._table.decode_rows(1)).sampled


class _Asked:
    """A prompt, its beams and their pages; beam `i` is in the slot `slot + i`."""

    def __init__(self, prompt: Sequence[int], slot: int, beams: Beams, pages: "BeamPages") -> None:
        self.prompt, self.slot, self.beams, self.pages = prompt, slot, beams, pages
        self.copies: Copies = {}

    def step(self, following: Sequence[Following]) -> None:
        """Chooses the beams that go on, and gives them pages for their newest tokens."""
        self.copies = {}
        if self.beams.running and (parents := self.beams.step(following)):
            self.copies = self.pages.fork(parents, len(self.prompt) + len(self.beams.running[0].tokens) - 1)


class BeamPages:
    """The pages of one prompt's beams, by kind: part number `place` of the pages of a group, which has `num_parts`.

    All beams have as many tokens, so a page that a window has left is left by all.
    """

    def __init__(self, plan: PagePlan, num_parts: int, place: int) -> None:
        self._plan = plan
        sizes = {kind: number // num_parts for kind, number in plan.num_pages.items()}
        self._own = {kind: range(place * size, (place + 1) * size) for kind, size in sizes.items()}
        self.tables: list[dict[str, list[int]]] = [{kind: [] for kind in plan.num_pages}]  # of each beam

    def extend(self, start: int, end: int) -> None:
        """Gives the only beam pages for the positions from `start` to `end`."""
        (tables,) = self.tables
        for kind, table in tables.items():
            self._leave(kind, table, start)
            free = self._free(kind, [table])
            table += [next(free) for _ in range(len(table), -(-end // self._plan.size))]

    def fork(self, parents: Sequence[int], position: int) -> Copies:
        """Beams that go on from these at a position; the pages to copy before they are written."""
        new = [{kind: list(table) for kind, table in self.tables[parent].items()} for parent in parents]
        copies = {kind: self._part(kind, [own[kind] for own in new], position) for kind in self._own}
        self.tables = new
        return copies

    def _part(self, kind: str, tables: Sequence[list[int]], position: int) -> list[tuple[int, int]]:
        """Gives each table its own page for a position."""
        for table in tables:
            self._leave(kind, table, position)
        number, copies, written = position // self._plan.size, [], set[int]()
        free = self._free(kind, tables)
        for table in tables:
            if number == len(table):
                table.append(next(free))
            elif table[number] in written:
                copies.append((table[number], next(free)))
                table[number] = copies[-1][1]
            written.add(table[number])
        return copies

    def _leave(self, kind: str, table: list[int], position: int) -> None:
        """Takes back the pages that no token from a position on sees."""
        window = self._plan.windows[kind]
        if window is not None:
            first = min(max(0, position - window + 1) // self._plan.size, len(table))
            table[:first] = [NO_PAGE] * first

    def _free(self, kind: str, tables: Sequence[Sequence[int]]) -> Iterator[int]:
        used = {page for table in tables for page in table}
        return (page for page in self._own[kind] if page not in used)


class _Programs(Programs):
    """The engine's programs, and one that copies pages."""

    def copy_pages(self, copies: Mapping[str, np.ndarray]) -> None:
        """Copies pages of each slot's group: by kind `[2, B]`, from and to; `NOWHERE`: none."""
        config, _, mesh, _ = self._given
        with self._launch:
            self._state = _copied(config, mesh, self._state, copies)


@partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="state")
def _copied(config: ModelConfig, mesh: AnyMesh, state: SlotState, copies: Mapping[str, Any]) -> SlotState:
    stored, by_row = tree_specs(state.logical_axes()), jax.tree.map(lambda _: spec(None, "batch"), copies)
    local = partial(_copied_here, config)
    return jax.shard_map(local, mesh=mesh, check_vma=False, in_specs=(stored, by_row), out_specs=stored)(state, copies)


def _copied_here(config: ModelConfig, state: SlotState, copies: Mapping[str, jax.Array]) -> SlotState:
    stacks = dict(state.cache.stacks)
    for group in layer_groups(config):
        for number, name in enumerate(group.stacks, group.first):
            source, target = copies[page_kind(config.kind(number))]
            copied = partial(_copy, source, target)
            stacks[name] = jax.tree.map(copied, stacks[name])
    return replace(state, cache=replace(state.cache, stacks=stacks))


def _copy(source: jax.Array, target: jax.Array, pages: jax.Array) -> jax.Array:
    return pages.at[:, target].set(pages[:, source], mode="drop")


def _following(sampled: Sampled, row: int, num_tokens: int) -> Following:
    if not is_finite(sampled, row):
        raise NotFiniteError(num_tokens)
    ids, logprobs = sampled.top_ids[row, 0].tolist(), sampled.top_logprobs[row, 0].tolist()
    return [(i, logprob) for i, logprob in zip(ids, logprobs, strict=True) if logprob > -math.inf]
