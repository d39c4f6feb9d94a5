"""Which prompts a step samples, and rounds of them until it has enough from which something is learned.

A group whose rewards are equal has no advantage. DAPO's dynamic sampling (Yu et al. 2025, "DAPO: An Open-Source LLM
Reinforcement Learning System at Scale", section 3.2) leaves such groups out and samples further prompts. Here each
round asks for as many as are missing, so no group with a spread is thrown away. What must hold: a step's batch has the
same size whatever is left out, and its prompts follow from its place in their order, the weights and the seed.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from lifecycle.rl.advantages import has_spread
from lifecycle.rl.batch import Scores
from lifecycle.rl.rollouts import Scored
from lifecycle.rl.sampling import Prompt
from lifecycle.training.packing import permutation

# Samples prompts of a step, of which so many were sampled before, and scores them.
type Sample = Callable[[Sequence[Prompt], int], Scored]


class PromptOrder:
    """Epochs of a seeded permutation of prompts, one after the other."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self._prompts, self._seed = prompts, seed
        self.by_number = {prompt.number: prompt for prompt in prompts}

    def take(self, place: int, num: int) -> list[Prompt]:
        """`num` prompts from `place` on."""
        chosen = []
        for at in range(place, place + num):
            epoch, within = divmod(at, len(self._prompts))
            order = permutation(self._seed, epoch, "prompts", len(self._prompts))
            chosen.append(self._prompts[int(order[within])])
        return chosen


def sampled_in_rounds(
    sample: Sample, order: PromptOrder, place: int, num_prompts: int, group_size: int, max_rounds: int
) -> tuple[Scored, int]:
    """`num_prompts` groups from `place` on, and the place behind the last prompt that was sampled. Groups without a
    spread are left out, but for those of the last of `max_rounds` rounds, which fill the step."""
    chosen: list[tuple[Scored, np.ndarray]] = []
    asked, missing = 0, num_prompts
    for number in range(1, max_rounds + 1):
        scored = sample(order.take(place + asked, missing), asked)
        asked += missing
        groups = has_spread(scored.rewards.reshape(-1, group_size))
        missing -= int(groups.sum())
        is_last = missing == 0 or number == max_rounds
        taken = np.ones_like(groups) if is_last else groups
        chosen.append((scored, np.flatnonzero(np.repeat(taken, group_size))))
        if is_last:
            break
    return _joined(chosen, asked - num_prompts), place + asked


def _joined(chosen: Sequence[tuple[Scored, np.ndarray]], dropped: int) -> Scored:
    """One step of several rounds, each with the completions that are taken of it; times and faults are those of all."""
    each = [scored for scored, _ in chosen]
    rewards = np.concatenate([scored.rewards for scored in each])
    metrics = {"dynamic_sampling/num_gen_batches": float(len(each)), "dynamic_sampling/groups_dropped": float(dropped)}
    if not np.isnan(rewards).all():
        metrics["dynamic_sampling/reward"] = float(np.nanmean(rewards))  # of all that was sampled
    return Scored(
        _taken([(scored.rollouts, places) for scored, places in chosen]),
        _joined_scores([(scored.scores, places) for scored, places in chosen]),
        sum(scored.generation_s for scored in each),
        sum(scored.reward_s for scored in each),
        metrics,
    )


def _joined_scores(chosen: Sequence[tuple[Scores, np.ndarray]]) -> Scores:
    """Of the chosen completions; what functions logged as a number is the mean of those rounds that have it."""
    each = [scores for scores, _ in chosen]
    faults: dict[str, Counter[str]] = {}
    logged: dict[str, list[float]] = {}
    for scores in each:
        for name, reasons in scores.faults.items():
            faults[name] = faults.get(name, Counter()) + reasons
        for name, value in scores.metrics.items():
            logged.setdefault(name, []).append(value)
    return Scores(
        {name: _taken([(scores.values[name], places) for scores, places in chosen]) for name in each[0].values},
        _taken([(scores.totals, places) for scores, places in chosen]),
        faults,
        metrics={name: float(np.mean(values)) for name, values in logged.items()},
    )


def _taken[T](chosen: Sequence[tuple[Sequence[T], np.ndarray]]) -> list[T]:
    return [values[place] for values, places in chosen for place in places]
