"""The promotion gate: a version takes over an alias only if no evaluation drops significantly below the current one's.

Every task of the current version is tested separately: paired if both versions were scored on the same examples,
otherwise by Welch's test (`lifecycle.evals.statistics` lists the tests). A task that cannot be compared, because the
new version has no result or one by another definition, fails. The first version passes. The levels are not corrected
for the number of tasks: with k tasks an equally good version is rejected up to k times as often, the price of catching
a drop in any one task.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lifecycle.core.config import ConfigError
from lifecycle.evals.comparison import compare
from lifecycle.evals.results import EvalResult
from lifecycle.evals.statistics import Comparison
from lifecycle.ops.config import GateConfig
from lifecycle.ops.registry import Move, Registry


class GateRefused(ValueError):
    """The gate rejected a version; the message is its report."""


@dataclass(frozen=True)
class Verdict:
    """The result for one task; `comparison` is None if there was nothing to compare."""

    task: str
    passed: bool
    reason: str
    before: EvalResult | None = None
    after: EvalResult | None = None
    comparison: Comparison | None = None

    def __str__(self) -> str:
        mark = "pass  " if self.passed else "REFUSE"
        line = f"{mark} {self.task}: {_value(self.before)} -> {_value(self.after)}"
        if self.comparison is not None:
            c = self.comparison
            line += f", difference {c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}], {c.test} p={c.p:.3g}"
        return f"{line}: {self.reason}"


@dataclass(frozen=True)
class GateReport:
    """All verdicts; the gate passes if every task does."""

    verdicts: tuple[Verdict, ...]
    summary: str

    @property
    def passed(self) -> bool:
        """Whether every task passed."""
        return all(verdict.passed for verdict in self.verdicts)

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"  {verdict}" for verdict in self.verdicts)])


def judge(
    before: Mapping[str, EvalResult] | None, after: Mapping[str, EvalResult], config: GateConfig | None = None
) -> GateReport:
    """Compares the evaluations of the current version (None: there is none) with those of the candidate."""
    config = config or GateConfig()
    known = before or {}
    names = [*known, *(name for name in after if name not in known)]
    unknown = sorted(config.tolerance.keys() - set(names))
    if unknown:
        raise ConfigError(f"gate: tolerance for {unknown[0]!r}, which neither version was evaluated on; tasks: {names}")
    names += [name for name in config.required if name not in names]
    verdicts = tuple(_judge_task(name, known.get(name), after.get(name), config) for name in names)
    refused = [verdict.task for verdict in verdicts if not verdict.passed]
    if refused:
        return GateReport(verdicts, f"refused by {', '.join(refused)}")
    if before is None:
        return GateReport(verdicts, "passed: the first version, nothing to fall below")
    if not after:
        unmeasured = Verdict(
            "evaluations", False, "the new version has none; run the evaluate stage and register it again with them"
        )
        return GateReport((unmeasured,), "refused: nothing was measured")
    return GateReport(verdicts, f"passed: no task is significantly worse (one-sided, {(1 - config.level) / 2:.3g})")


def promote(
    registry: Registry, name: str, *, who: str, why: str, alias: str = "production", config: GateConfig | None = None
) -> tuple[GateReport, Move]:
    """Moves `alias` to a version if the gate passes.

    Raises `GateRefused` with the report, and `RegistryError` if the alias is moved by someone else during the call.
    """
    target = registry.resolve(name)
    current = registry.aliases().get(alias)
    before = registry.evaluations(current) if current else None
    report = judge(before, registry.evaluations(target.hash), config)
    if not report.passed:
        raise GateRefused(f"{target.short} is not promoted to {alias}: {report}")
    move = registry.move(alias, target.hash, who=who, why=why, expected=current or "", gate=str(report))
    return report, move


def _judge_task(name: str, before: EvalResult | None, after: EvalResult | None, config: GateConfig) -> Verdict:
    if after is None:
        return Verdict(name, False, "the new version was not measured on it; evaluate it", before, after)
    if before is None:
        return Verdict(name, True, "measured for the first time", before, after)
    if (before.definition, before.metric) != (after.definition, after.metric):
        reason = (
            "the task's definition has changed; run the current version's own config with the new tasks first "
            "(nothing is trained again)"
        )
        return Verdict(name, False, reason, before, after)
    comparison = compare(before, after, config.level)
    gain = comparison.difference if after.higher_is_better else -comparison.difference
    if gain >= 0:
        return Verdict(name, True, "no worse", before, after, comparison)
    if comparison.p >= (1 - config.level) / 2:
        return Verdict(name, True, "a fall within chance", before, after, comparison)
    if -gain <= config.tolerance.get(name, 0.0):
        return Verdict(name, True, "significantly worse, within the tolerance", before, after, comparison)
    return Verdict(name, False, "significantly worse", before, after, comparison)


def _value(result: EvalResult | None) -> str:
    return "-" if result is None else f"{result.mean:.4f}"
