"""Batches of rollouts: each step's completions are sampled from the weights before it, scored, and packed into rows.

What must hold: the batch of a step follows from the weights, the seed and the step's number, whatever was done before.
With `num_iterations` above 1 the steps in between use the same completions, so a checkpoint's state carries these.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lifecycle.core.config import digest
from lifecycle.model.params import Params
from lifecycle.rl.advantages import advantages
from lifecycle.rl.config import GrpoConfig, PpoConfig, RolloutConfig
from lifecycle.rl.returns import with_returns
from lifecycle.rl.rollouts import Prompt, Rollout, Sampler, Scored
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.batches import HostBatch
from lifecycle.training.group_rows import Group, packed_groups
from lifecycle.training.objectives.policy import ADVANTAGES, KEPT, OLD, REFERENCE, SAMPLER
from lifecycle.training.objectives.ppo import VALUES
from lifecycle.training.packing import DataStateError, permutation

AT_HAND = 2  # steps whose rollouts are at hand: the newest, and the one before, which may be trained on now

type Columns = Callable[[Params, HostBatch], dict[str, np.ndarray]]  # what the trainer knows of a batch's tokens


class PolicyBatches:
    """The batches of a stage that learns from rewards, in one process."""

    def __init__(
        self, prompts: Sequence[Prompt], settings: RolloutConfig, sampler: Sampler, seed: int, measured: Columns
    ) -> None:
        """`measured` gives the columns of log-probabilities that the settings need, from the weights before the first
        of a batch's steps."""
        self._prompts, self._settings, self._sampler, self._seed = prompts, settings, sampler, seed
        self._measured = measured
        self._made: OrderedDict[int, _Made] = OrderedDict()
        self.fingerprint = digest(["prompts", seed, [[list(p.ids), dict(p.columns)] for p in prompts]])

    @property
    def group_size(self) -> int:
        """Samples of each prompt."""
        return self._settings.group_size

    def batch(self, step: int, params: Params) -> HostBatch:
        """The rows of `step`, sampled if its completions are new."""
        return self.of_step(step, params).batch

    def of_step(self, step: int, params: Params) -> "_Made":
        """The rollouts that `step` trains on, with their batch."""
        first = step - step % self._settings.num_iterations
        if first not in self._made:
            scored = self._sampler.sample(first, params, self.prompts_of(first))
            batch = packed(scored, self._settings)
            batch |= self._measured(params, batch)
            value = self._settings.value if isinstance(self._settings, PpoConfig) else None
            self._made[first] = _Made(scored, batch if value is None else with_returns(batch, value))
            while len(self._made) > AT_HAND:
                self._made.popitem(last=False)
        return self._made[first]

    def newest(self, step: int) -> Scored | None:
        """What `step` trained on, if it is still at hand."""
        made = self._made.get(step - step % self._settings.num_iterations)
        return None if made is None else made.scored

    def prompts_of(self, step: int) -> list[Prompt]:
        """A step's prompts: epochs of a seeded permutation."""
        number = step // self._settings.num_iterations * self._settings.prompts_per_step
        chosen = []
        for place in range(number, number + self._settings.prompts_per_step):
            epoch, within = divmod(place, len(self._prompts))
            order = permutation(self._seed, epoch, "prompts", len(self._prompts))
            chosen.append(self._prompts[int(order[within])])
        return chosen

    def spent(self, step: int) -> Mapping[str, float]:
        """The seconds of sampling and scoring, if it was done for this step."""
        scored = self.newest(step)
        if scored is None or step % self._settings.num_iterations:
            return {}
        return {"generation": scored.generation_s, "reward": scored.reward_s}

    def contents(self, step: int) -> list[dict[str, Any]]:
        """The prompts of a step."""
        return [{"prompts": [prompt.number for prompt in self.prompts_of(step)]}]

    def state(self, step: int) -> dict[str, Any]:
        """The step; in the midst of several steps on the same completions, these too."""
        state: dict[str, Any] = {"step": step, "source": self.fingerprint}
        first = step - step % self._settings.num_iterations
        if first != step:
            state["rollouts"] = self._made[first].plain()
        return state

    def restore(self, state: dict[str, Any]) -> int:
        """The state's step; raises `DataStateError` for other prompts."""
        step = state["step"]
        if state["source"] != self.fingerprint:
            raise DataStateError(
                f"the checkpoint at step {step} was made from other prompts; restore them or start a new run"
            )
        self._made.clear()
        if "rollouts" in state:
            first = step - step % self._settings.num_iterations
            self._made[first] = _Made.from_plain(state["rollouts"])
        return step

    def continue_from(self, state: dict[str, Any]) -> int:
        """As `restore`: the prompts go on."""
        return self.restore({**state, "source": self.fingerprint})

    def close(self) -> None:
        """Nothing works ahead; ends environments."""
        self._sampler.close()


class _Made:
    """A batch, and the rollouts that it was made from; after a restart only the batch."""

    def __init__(self, scored: Scored | None, batch: HostBatch) -> None:
        self.scored, self.batch = scored, batch

    def plain(self) -> dict[str, Any]:
        """The batch, JSON-ready: numbers of float32 survive."""
        return {name: [column.dtype.name, column.tolist()] for name, column in self.batch.items()}

    @classmethod
    def from_plain(cls, columns: Mapping[str, Any]) -> "_Made":
        """The reverse."""
        return cls(None, {name: np.array(values, dtype) for name, (dtype, values) in columns.items()})


def packed(scored: Scored, settings: RolloutConfig) -> HostBatch:
    """The rollouts in `global_batch_size` rows, each a segment with its advantage, or its reward if a value function
    makes advantages of that."""
    groups = [
        Group([_segment(rollout, settings.mask_truncated)], {ADVANTAGES: [float(value)]})
        for rollout, value in zip(scored.rollouts, _values(scored.rewards, settings), strict=True)
    ]
    batch = packed_groups(groups, settings.seq_len, settings.global_batch_size)
    rollouts = scored.rollouts
    batch[SAMPLER] = _per_token([rollout.logprobs for rollout in rollouts], rollouts, batch, np.float32(0))
    if settings.top_k:
        kept = [[_padded(ids, settings.top_k) for ids in rollout.kept] for rollout in rollouts]
        batch[KEPT] = _per_token(kept, rollouts, batch, _padded((), settings.top_k))
    return batch


def _padded(ids: Sequence[int], size: int) -> np.ndarray:
    return np.array([*ids, *[-1] * (size - len(ids))], np.int32)


def _values(rewards: np.ndarray, settings: RolloutConfig) -> np.ndarray:
    if isinstance(settings, GrpoConfig):
        return advantages(settings.advantage, rewards.reshape(-1, settings.group_size)).reshape(-1)
    return np.nan_to_num(rewards)


def _segment(rollout: Rollout, mask_truncated: bool) -> EncodedRow:
    """A prompt with its completion, which is learned unless it was cut off and such ones teach nothing, or its
    environment failed."""
    is_learned = not (mask_truncated and rollout.is_cut) and not rollout.fault
    mask = [False] * len(rollout.prompt.ids) + [is_learned and is_own for is_own in rollout.is_own]
    return EncodedRow([*rollout.prompt.ids, *rollout.ids], mask)


def _per_token(values: Sequence[Any], rollouts: Sequence[Rollout], batch: HostBatch, blank: Any) -> np.ndarray:
    """Values of completions' tokens at the positions that predict them, `[B, T, ...]`; elsewhere `blank`."""
    column = np.broadcast_to(blank, (*batch["tokens"].shape, *blank.shape)).copy()
    for row, place in np.argwhere(batch["group_mask"] > 0):
        number = int(batch["group_ids"][row, place])
        begin = int(np.argmax(batch["segment_ids"][row] == place + 1)) + len(rollouts[number].prompt.ids) - 1
        column[row, begin : begin + len(values[number])] = values[number]
    return column


def needed_columns(settings: RolloutConfig) -> tuple[str, ...]:
    """Log-probabilities that must be computed before a batch's first step."""
    needed = {OLD: settings.num_iterations > 1, REFERENCE: settings.beta > 0, VALUES: isinstance(settings, PpoConfig)}
    return tuple(name for name, is_needed in needed.items() if is_needed)
