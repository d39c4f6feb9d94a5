"""Rollouts as a step's rows: segments with their advantages, and log-probabilities at their tokens' places.

What must hold: rows follow from the rollouts alone, and rewards fill a column whose places are known before them; so
what devices compute of the tokens need not wait for rewards.
"""

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lifecycle.rl.advantages import advantages
from lifecycle.rl.config import GrpoConfig, PpoConfig, RolloutConfig
from lifecycle.rl.metrics import metrics_of
from lifecycle.rl.partial import Flight
from lifecycle.rl.penalty import divergences, per_completion
from lifecycle.rl.returns import with_returns
from lifecycle.rl.rollouts import Scored
from lifecycle.rl.samples import samples_of
from lifecycle.rl.sampling import Rollout
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.batches import HostBatch
from lifecycle.training.group_rows import Group, packed_groups
from lifecycle.training.objectives.policy import ADVANTAGES, KEPT, OLD, REFERENCE, SAMPLER
from lifecycle.training.objectives.ppo import VALUES


@dataclass
class Made:
    """What a step trains on. `first`: the first step that does; `version`: the number of steps that the weights had
    taken that it was sampled from; `place`: of its first prompt in their order; `prompts`: the prompts' numbers;
    `flight`: what was in flight before.

    Until `finish`, `pending` gives the rewards, and the batch has no advantages. After a restart there are no rollouts.
    """

    first: int
    version: int
    place: int
    prompts: Sequence[int]
    batch: HostBatch
    pending: Callable[[], Scored] | None = None
    scored: Scored | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()  # of the rollouts with their rewards, JSON-ready
    flight: Flight = ()

    def finish(self, settings: RolloutConfig) -> None:
        """Waits for the rewards, if they are not there; raises what finding them raises."""
        if self.pending is None:
            return
        self.scored, self.pending = replace(self.pending(), version=self.version), None
        self.batch, divergence = with_rewards(self.batch, self.scored.rewards, settings)
        staleness = {"sampling/staleness": float(self.first - self.version)} if settings.max_staleness else {}
        self.metrics = staleness | metrics_of(self.scored, settings.group_size) | divergence
        self.samples = samples_of(self.scored, settings.group_size)

    def fits(self, settings: RolloutConfig) -> bool:
        """Whether the batch is one of a stage with these settings."""
        own = packed_shapes(settings)
        return own == {name: self.batch[name].shape if name in self.batch else () for name in own}

    def plain(self) -> dict[str, Any]:
        """What a state has of it, JSON-ready: all but the rollouts themselves, of which a few are kept."""
        columns = {name: _plain(column) for name, column in self.batch.items()}
        known = {"first": self.first, "version": self.version, "place": self.place, "prompts": list(self.prompts)}
        return known | {"columns": columns, "metrics": dict(self.metrics), "samples": list(self.samples)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Made":
        """The reverse."""
        batch = {name: _from_plain(*column) for name, column in plain["columns"].items()}
        first, version, place = (plain[name] for name in ("first", "version", "place"))
        told = {name: plain[name] for name in ("metrics", "samples")}
        return cls(first, version, place, plain["prompts"], batch, **told)


def _plain(column: np.ndarray) -> tuple[str, list[int], str]:
    """An array's type, shape and content: kept ids as numbers in JSON are ten times as long."""
    packed = zlib.compress(np.ascontiguousarray(column).tobytes(), 1)
    return column.dtype.str, list(column.shape), base64.b85encode(packed).decode("ascii")


def _from_plain(dtype: str, shape: Sequence[int], content: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b85decode(content)), dtype).reshape(shape).copy()


def packed_shapes(settings: RolloutConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of columns from which those of all follow."""
    rows = (settings.global_batch_size, settings.seq_len)
    kept: dict[str, tuple[int, ...]] = {KEPT: (*rows, settings.top_k)} if settings.top_k else {}
    groups = (settings.global_batch_size, settings.prompts_per_step * settings.group_size)
    return {"tokens": rows, "group_mask": groups} | kept


def packed(rollouts: Sequence[Rollout], settings: RolloutConfig) -> HostBatch:
    """The rollouts in `global_batch_size` rows, each a segment, with what the sampler knows of their tokens."""
    groups = [Group([_segment(rollout, settings.mask_truncated)]) for rollout in rollouts]
    batch = packed_groups(groups, settings.seq_len, settings.global_batch_size, settings.grad_accum)
    batch[SAMPLER] = _per_token([rollout.logprobs for rollout in rollouts], rollouts, batch, np.float32(0))
    if settings.top_k:
        kept = [[_padded(ids, settings.top_k) for ids in rollout.kept] for rollout in rollouts]
        batch[KEPT] = _per_token(kept, rollouts, batch, _padded((), settings.top_k))
    if settings.max_staleness and settings.sampler_cap is None:
        batch[OLD] = batch[SAMPLER]
    return batch


def with_rewards(batch: HostBatch, rewards: np.ndarray, settings: RolloutConfig) -> tuple[HostBatch, dict[str, float]]:
    """Each segment with its advantage; of PPO, each token with what the value function makes of the rewards. Where the
    divergence from the initial model lowers the rewards, the batch needs no column for it any more, and the metrics
    beside have it as `kl`, per token."""
    penalty, metrics = None, {}
    if settings.lowers_rewards:
        estimated = divergences(batch, settings)
        penalty, metrics = settings.beta * estimated, {"kl": _mean_of_learned(estimated, batch)}
        batch = {name: column for name, column in batch.items() if name != REFERENCE}
    if isinstance(settings, PpoConfig):
        return with_returns(_with_advantages(batch, np.nan_to_num(rewards)), settings.value, penalty), metrics
    assert isinstance(settings, GrpoConfig), settings
    if penalty is not None:
        rewards = rewards - per_completion(batch, penalty, len(rewards))
    compared = advantages(settings.advantage, rewards.reshape(-1, settings.group_size)).reshape(-1)
    return _with_advantages(batch, compared), metrics


def _mean_of_learned(values: np.ndarray, batch: HostBatch) -> float:
    return float(values.sum() / max(batch["loss_mask"].sum(), 1))


def _with_advantages(batch: HostBatch, values: np.ndarray) -> HostBatch:
    """Each segment with its completion's value."""
    of_segment = np.where(batch["group_mask"] > 0, values.astype(np.float32)[batch["group_ids"]], 0)
    return batch | {ADVANTAGES: of_segment[..., None].astype(np.float32)}


def _padded(ids: Sequence[int], size: int) -> np.ndarray:
    return np.array([*ids, *[-1] * (size - len(ids))], np.int32)


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
        own = np.reshape(values[number], (-1, *blank.shape))
        column[row, begin : begin + len(own)] = own
    return column


def needed_columns(settings: RolloutConfig) -> tuple[str, ...]:
    """Log-probabilities that must be computed before a batch's first step."""
    needed = {OLD: settings.num_iterations > 1, REFERENCE: settings.beta > 0, VALUES: isinstance(settings, PpoConfig)}
    return tuple(name for name, is_needed in needed.items() if is_needed)
