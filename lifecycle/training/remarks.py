"""Remarks on a training stage: what its metrics say that its user should act on, once for each kind.

    metric -> predicate over the log so far -> remark

A remark follows from the stage and the records of its run log alone. So a resumed run, whose log was rewound, goes on
with the window that it had; and `watch` and the report find what the terminal was told. Too few records, or values that
are not finite, say nothing.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lifecycle.training.metric_names import HELD_OUT

RECENT = 5  # logged records that a remark looks at; fewer at the end of a shorter stage
MOST_FLAT, MOST_CUT = 0.8, 0.8  # shares of groups and of completions
# Chosen answers have become less likely if they lost this share of their log-probability since the stage began; of
# training batches, each of other pairs, also this many standard errors: t of 8 degrees of freedom, p = 0.0005.
FALL, ERRORS = 0.1, 5.0
# Nats per learned token, a mean. Of SmolLM2-135M's completions the two differ by 7e-6 in float32, 0.042 in bfloat16 and
# 0.26 with products of 8 bits, which the trainer alone has (on a CPU, at temperature 1).
LARGEST_GAP = {"float32": 1e-3, "bfloat16": 0.1}
LARGEST_GAP_8_BITS = 0.6
NEAR_CHANCE, QUANTILE = 0.6, 1.645  # a reward model's accuracy is surely below the first: one-sided, 95 %


@dataclass(frozen=True)
class Remark:
    """What is to be said of a stage at a step."""

    step: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.text}"


@dataclass(frozen=True)
class RemarkedStage:
    """What remarks need to know of a stage. `settings`: plain, as in the run file; `dtype`: of products."""

    objective: str
    steps: int
    dtype: str
    settings: Mapping[str, Any]


@dataclass
class Points:
    """A metric's finite values: the first and the newest `RECENT`, and how many there are."""

    count: int = 0
    first: list[float] = field(default_factory=list)
    newest: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, value: float) -> None:
        """Adds the newest value."""
        self.count += 1
        self.newest.append(value)
        if len(self.first) < RECENT:
            self.first.append(value)


@dataclass(frozen=True)
class Seen:
    """What a rule looks at: the stage, the metrics so far and the step of the newest record."""

    stage: RemarkedStage
    points: Mapping[str, Points]
    step: int

    def last(self, metric: str) -> float | None:
        """The newest value."""
        return self.points[metric].newest[-1] if metric in self.points else None

    def recent(self, metric: str) -> list[float]:
        """The newest values; none before there are `RECENT`, or the stage ends: one step is no trend."""
        points = self.points[metric]
        is_enough = points.count >= RECENT or self.step >= self.stage.steps
        return list(points.newest) if is_enough else []


type Find = Callable[[Seen, str], str | None]  # of a metric that has just been logged: what to say


@dataclass(frozen=True)
class Rule:
    """A kind of remark, the metric whose records it looks at, and its predicate."""

    kind: str
    metric: str
    find: Find


class Remarks:
    """The remarks on one stage, found record by record in the order of its log."""

    def __init__(self, stage: RemarkedStage) -> None:
        self._stage = stage
        self._points: dict[str, Points] = {}
        self._found: set[str] = set()

    def see(self, record: Mapping[str, Any]) -> Iterator[Remark]:
        """Takes a record of the run log, and yields what is new with it."""
        for metric in METRICS.intersection(record):
            if math.isfinite(record[metric]):
                self._points.setdefault(metric, Points()).add(record[metric])
        for rule in RULES:
            is_new = rule.kind not in self._found and math.isfinite(record.get(rule.metric, math.nan))
            if not is_new:
                continue
            text = rule.find(Seen(self._stage, self._points, record["step"]), rule.metric)
            if text is not None:
                self._found.add(rule.kind)
                yield Remark(record["step"], rule.kind, text)


def _share_above(most: float, remark: str) -> Find:
    def find(seen: Seen, metric: str) -> str | None:
        shares = seen.recent(metric)
        share = statistics.fmean(shares) if shares else 0.0
        return f"{share:.0%} {remark}" if share > most else None

    return find


def _less_likely(seen: Seen, metric: str) -> str | None:
    """Pal et al. 2024, "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", section 3; Razin et
    al. 2024, "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization"."""
    is_held_out = metric.startswith(HELD_OUT)  # which is measured on the same pairs again and again
    margins = metric.replace("logps/chosen", "rewards/margins")
    window = 1 if is_held_out else RECENT
    own, ahead = seen.points[metric], seen.points.get(margins)
    if ahead is None or min(own.count, ahead.count) < 2 * window:
        return None
    before, after = own.first[:window], list(own.newest)[-window:]
    start, now = statistics.fmean(before), statistics.fmean(after)
    least = FALL * abs(start)
    if not is_held_out:
        variance = (statistics.variance(before) + statistics.variance(after)) / window
        least = max(least, ERRORS * math.sqrt(variance))
    is_wider = statistics.fmean(list(ahead.newest)[-window:]) > statistics.fmean(ahead.first[:window])
    if start - now <= least or not is_wider:
        return None
    return (
        f"chosen answers have become less likely: {metric} fell from {start:.4g} to {now:.4g} while margins rise, so "
        "what rejected answers lose goes elsewhere; lower optimizer.learning_rate, raise beta, or add the likelihood "
        "to the loss, as dpo's loss: {sigmoid: 1, sft: 1}"
    )


def _divergence(seen: Seen, metric: str) -> str | None:
    """Of policies: another objective's `kl` has other units. The median, for k3 has outliers. An estimate may be
    negative by noise, a mean hardly: TRL's PPOTrainer warned of that (0.11, below -1 nat per completion)."""
    most, recent = seen.stage.settings.get("max_kl"), seen.recent(metric)
    if most is None or not recent:
        return None
    kl = statistics.median(recent)
    if kl > most:
        return (
            f"kl is {kl:.3g} nats per token, above max_kl={most:g}: the policy is far from its initial model; raise "
            "beta, or lower optimizer.learning_rate"
        )
    if kl < -most / 10:
        return (
            f"kl is {kl:.3g} nats per token, and a divergence is not negative: completions are not likely under the "
            "policy that is trained; lower optimizer.learning_rate or num_iterations"
        )
    return None


def _sampler_gap(seen: Seen, metric: str) -> str | None:
    rounds_to_8_bits = seen.stage.settings.get("precision") is not None
    what = "products of 8 bits" if rounds_to_8_bits else seen.stage.dtype
    most = LARGEST_GAP_8_BITS if rounds_to_8_bits else LARGEST_GAP.get(seen.stage.dtype)
    gap = seen.last(metric)
    if most is None or gap is None or gap <= most:
        return None
    return (
        f"log-probabilities of the sampler and of the trainer differ by {gap:.3g} nats per token, more than {most:g}, "
        f"which {what} would explain: what is learned is not what was sampled; sampler_cap bounds the harm"
    )


def _near_chance(seen: Seen, metric: str) -> str | None:
    pairs, share = seen.last(f"{HELD_OUT}count"), seen.last(metric)
    if seen.stage.objective != "reward_model" or seen.step < seen.stage.steps / 2 or not pairs or share is None:
        return None
    if share + QUANTILE * math.sqrt(0.25 / pairs) >= NEAR_CHANCE:
        return None
    return (
        f"the reward model prefers the chosen answer in {share:.0%} of {pairs:,.0f} held-out pairs, and chance is 50%: "
        "its rewards would be noise; give it more steps or pairs, or look at the pairs"
    )


RULES = (
    Rule(
        "flat rewards",
        "frac_reward_zero_std",
        _share_above(
            MOST_FLAT,
            "of the groups have equal rewards, which teach nothing; make the prompts neither too hard nor too easy, or "
            "sample more per prompt",
        ),
    ),
    Rule(
        "cut completions",
        "completions/clipped_ratio",
        _share_above(MOST_CUT, "of the completions are cut off at max_completion_tokens; raise it"),
    ),
    Rule("chosen log-probabilities", f"{HELD_OUT}logps/chosen", _less_likely),
    Rule("chosen log-probabilities", "logps/chosen", _less_likely),
    Rule("divergence", "kl", _divergence),
    Rule("sampler gap", "sampling/sampling_logp_difference/mean", _sampler_gap),
    Rule("reward model", f"{HELD_OUT}accuracy", _near_chance),
)
METRICS = frozenset(rule.metric for rule in RULES) | {
    "rewards/margins",
    f"{HELD_OUT}rewards/margins",
    f"{HELD_OUT}count",
}
