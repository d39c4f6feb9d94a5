"""Batches of rollouts: each step's completions are sampled from the weights before it, scored, and packed into rows.

With `max_staleness` above 0 they are sampled so many steps before. Sampling and updates share their devices, one after
the other; the search for rewards, on the host, goes on beside both. It is fixed which weights sample for which step,
whoever is faster.

What must hold: the batch of a step follows from the weights, the seed and the state, whatever was done before. What
later steps train on, and was sampled from earlier weights than the present ones, is in a checkpoint's state: with
`num_iterations` above 1 the completions of the steps in between, with `max_staleness` those of the steps ahead, with
`partial` the groups in flight.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from lifecycle.core.config import digest
from lifecycle.core.distributed import is_writer
from lifecycle.model.params import Params
from lifecycle.rl.config import GrpoConfig, RolloutConfig
from lifecycle.rl.packed import Made, packed
from lifecycle.rl.partial import Flight, Group, begun, drawn_in_pieces, num_to_begin
from lifecycle.rl.rollouts import Sampler, Scored
from lifecycle.rl.rounds import PromptOrder, sampled_in_rounds
from lifecycle.rl.sampling import Prompt, Rollout
from lifecycle.training.batches import HostBatch
from lifecycle.training.packing import DataStateError

type Columns = Callable[[Params, HostBatch], dict[str, np.ndarray]]  # what the trainer knows of a batch's tokens


class PolicyBatches:
    """The batches of a stage that learns from rewards. Every process of a job has the rollouts of all."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        settings: RolloutConfig,
        sampler: Sampler,
        seed: int,
        measured: Columns,
        held: Sequence[int] | None = None,
    ) -> None:
        """`measured` gives the columns of log-probabilities that the settings need, from the weights that a batch is
        sampled from. `held`: this process's rows of a batch; None: all."""
        self._settings, self._sampler, self._measured = settings, sampler, measured
        self._held = slice(None) if held is None else list(held)
        self._order = PromptOrder(prompts, seed)
        self._made: dict[int, Made] = {}  # by the first step on them
        self._asked: deque[int] = deque([0], maxlen=2)  # the newest steps that were asked for
        self._next, self._place = 0, 0  # the first step that is not sampled, and where it begins in the order
        self._flight: Flight = ()  # what goes on at that step
        self._spent: tuple[int, dict[str, float]] = 0, {}
        self._thread = ThreadPoolExecutor(1, "rewards") if settings.max_staleness else None
        self.fingerprint = digest(["prompts", seed, [[list(p.ids), dict(p.columns)] for p in prompts]])

    @property
    def group_size(self) -> int:
        """Samples of each prompt."""
        return self._settings.group_size

    def batch(self, step: int, params: Params) -> HostBatch:
        """This process's rows of `step`, sampled if its completions are new."""
        return {name: column[self._held] for name, column in self.of_step(step, params).batch.items()}

    def of_step(self, step: int, params: Params) -> "Made":
        """What `step` trains on. Samples up to `max_staleness` steps ahead, whose rewards are then found while this
        step's update and the next sampling run."""
        first, ahead = self._first(step), 0 if self._settings.partial else self._settings.max_staleness
        self._spent = step, {}
        self._asked.append(first)
        self._made = {at: made for at, made in self._made.items() if at >= min(self._asked)}
        for at in range(first, min(first + ahead, max(self._settings.steps - 1, first)) + 1):
            if at not in self._made:
                self._made[at] = self._sampled(at, step, params)
        made = self._made[first]
        if made.pending is not None:
            with self._timed("reward" if self._thread is None else "waiting"):
                made.finish(self._settings)
        return made

    def _sampled(self, first: int, version: int, params: Params) -> "Made":
        """The rollouts of the step `first`, by the weights before the step `version`."""
        place, flight = self._place_of(first), self._flight if first == self._next else ()
        rollouts, pending, end = self._rollouts(first, place, flight, params)
        batch = packed(rollouts, self._settings)
        with self._timed("logprobs"):
            batch |= self._measured(params, batch)
        self._next, self._place = first + self._settings.num_iterations, end
        numbers = [rollout.prompt.number for rollout in rollouts[:: self.group_size]]
        return Made(first, version, place, numbers, batch, pending, flight=flight)

    def _rollouts(
        self, first: int, place: int, flight: Flight, params: Params
    ) -> tuple[Sequence[Rollout], Callable[[], Scored], int]:
        """Rollouts, what finds their rewards, and the place in the order behind their prompts."""
        settings, num, sampler = self._settings, self._settings.prompts_per_step, self._sampler
        rounds = settings.max_num_gen_batches if isinstance(settings, GrpoConfig) else 1
        if rounds > 1:
            sample = partial(sampler.sample, first, params)
            scored, end = sampled_in_rounds(sample, self._order, place, num, self.group_size, rounds)
            self._add("generation", scored.generation_s)
            self._add("reward", scored.reward_s)
            return scored.rollouts, lambda: scored, end
        if settings.partial is None:
            drawn, end = sampler.drawn(first, params, self._order.take(place, num)), place + num
        else:
            end = place + num_to_begin(flight, settings, first)
            flight = [*flight, *begun(sampler, first, self._order.take(place, end - place))]
            drawn, self._flight = drawn_in_pieces(sampler, settings, first, params, flight)
        self._add("generation", drawn.generation_s)
        self._add("reward", drawn.by_model_s)
        find = partial(sampler.found, drawn)
        if self._thread is not None and is_writer():
            find = self._thread.submit(find).result
        return drawn.rollouts, partial(sampler.told, drawn, find), end

    def _first(self, step: int) -> int:
        """The first of the steps on the same completions."""
        return step - step % self._settings.num_iterations

    def _place_of(self, first: int) -> int:
        """Where a step that is not sampled begins in the order; batches that were passed over have their prompts."""
        return self._place + (first - self._next) // self._settings.num_iterations * self._settings.prompts_per_step

    @contextmanager
    def _timed(self, cause: str) -> Generator[None]:
        began = time.perf_counter()
        yield
        self._add(cause, time.perf_counter() - began)

    def _add(self, cause: str, seconds: float) -> None:
        spent = self._spent[1]
        spent[cause] = spent.get(cause, 0.0) + seconds

    def at_hand(self, step: int) -> "Made | None":
        """What `step`, as this source counts, trained on, if it is still at hand."""
        return self._made.get(self._first(step))

    def spent(self, step: int) -> Mapping[str, float]:
        """The seconds of sampling and scoring, and of waiting for rewards, in the call for this step."""
        return self._spent[1] if self._spent[0] == step else {}

    def contents(self, step: int) -> list[dict[str, Any]]:
        """The prompts of a step."""
        first = self._first(step)
        if (made := self._made.get(first)) is not None:
            return [{"prompts": made.prompts}]
        prompts = self._order.take(self._place_of(first), self._settings.prompts_per_step)
        return [{"prompts": [prompt.number for prompt in prompts]}]

    def state(self, step: int) -> dict[str, Any]:
        """The step, the place in the order of prompts behind it, and what was sampled from the weights of earlier steps
        and is trained on from it on. What the step's own weights sample comes again from these."""
        first = self._first(step)
        carried = [at for at in sorted(self._made) if at >= first and self._made[at].version < step]
        behind = carried[-1] + self._settings.num_iterations if carried else first
        made = self._made.get(behind)
        place = self._place_of(behind) if made is None else made.place
        state: dict[str, Any] = {"step": step, "source": self.fingerprint, "place": place}
        for at in carried:
            self._made[at].finish(self._settings)
        if flight := self._flight if made is None else made.flight:
            state["flight"] = [group.plain() for group in flight]
        return state | ({"rollouts": [self._made[at].plain() for at in carried]} if carried else {})

    def restore(self, state: dict[str, Any]) -> int:
        """The state's step; raises `DataStateError` for other prompts."""
        step = state["step"]
        if state["source"] != self.fingerprint:
            raise DataStateError(
                f"the checkpoint at step {step} was made from other prompts; restore them or start a new run"
            )
        carried = [Made.from_plain(plain) for plain in state.get("rollouts", [])]
        self._made = {made.first: made for made in carried}
        self._asked = deque([self._first(step)], maxlen=2)
        self._next = carried[-1].first + self._settings.num_iterations if carried else self._first(step)
        self._place = state["place"]
        self._flight = [Group.from_plain(plain, self._order.by_number) for plain in state.get("flight", [])]
        return step

    def continue_from(self, state: dict[str, Any]) -> int:
        """As `restore`: the prompts go on, from the first rollouts that do not fit this run's batches. Completions in
        flight are given up."""
        step = self.restore({**state, "source": self.fingerprint, "flight": []})
        misfit = next((made for made in self._made.values() if not made.fits(self._settings)), None)
        if misfit is not None:
            self._made = {at: made for at, made in self._made.items() if at < misfit.first}
            self._next, self._place = misfit.first, misfit.place
        return step

    def close(self) -> None:
        """Waits for rewards that are being found, and finds no more; ends environments."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._sampler.close()
