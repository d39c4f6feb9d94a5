"""What a trained ladder says: the loss law, the check with its deepest rung held out, and the target's forecast."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.ops.cost import PriceConfig
from lifecycle.planning.loss_law import DRAWS, LEVEL, Estimate, LossLaw, Prediction, Trained, power_law, predict
from lifecycle.report.blocks import Charts, LineChart, Paragraph, Report, ReportSection, Series, Table
from lifecycle.report.format import count, duration, flops, money, significant
from lifecycle.stages.ladder import SHARES, Rung

LOSS = "heldout_bits_per_byte"
POINTS = 30  # of a drawn law


@dataclass(frozen=True)
class Measured:
    """A rung, its held-out bits per byte after the last step, and the core-seconds of its steps."""

    rung: Rung
    loss: float
    core_s: float

    @property
    def trained(self) -> Trained:
        """As the loss law sees it."""
        return Trained(self.rung.params, self.rung.tokens, self.loss)


@dataclass(frozen=True)
class Check:
    """A run of the deepest rung: what the others predict, and what was measured."""

    measured: Measured
    predicted: Estimate

    @property
    def is_inside(self) -> bool:
        """Whether the interval holds the measured loss."""
        return self.predicted.holds(self.measured.loss)


@dataclass(frozen=True)
class LossForecast:
    """Everything that a ladder says about its target."""

    target: Rung
    ladder: tuple[Measured, ...]
    checks: tuple[Check, ...]
    prediction: Prediction
    core_s: Estimate

    def plain(self) -> dict[str, Any]:
        """The forecast as JSON-ready data."""
        checks = [
            {"stage": check.measured.rung.stage, "predicted": asdict(check.predicted), "measured": check.measured.loss}
            | {"is_inside": check.is_inside}
            for check in self.checks
        ]
        return {
            "target": _facts(self.target),
            "ladder": [_facts(run.rung) | {"loss": run.loss, "core_s": run.core_s} for run in self.ladder],
            "level": LEVEL,
            "checks": checks,
            **asdict(self.prediction),
            "core_s": asdict(self.core_s),
        }


def measure(rungs: Sequence[Rung], artifacts: Mapping[str, Artifact]) -> tuple[Measured, ...]:
    """The finished rungs' losses and costs, from their logs. Raises `ConfigError` if nothing was held out, or if some
    were measured on more text than others."""
    require_same_text(rungs, artifacts)
    measured = []
    for rung in rungs:
        records = list(read_log(artifacts[rung.stage].path / METRICS))
        losses = [record[LOSS] for record in records if LOSS in record]
        if not losses:
            raise ConfigError("no document is held out, so no rung has a held-out loss; raise data.heldout_fraction")
        measured.append(Measured(rung, losses[-1], sum(record.get("cpu_s", 0.0) for record in records)))
    return tuple(measured)


def require_same_text(rungs: Sequence[Rung], artifacts: Mapping[str, Artifact]) -> None:
    """Rungs of an earlier ladder are not trained again when `eval_bytes` has changed."""
    sizes = {rung.stage: artifacts[rung.stage].manifest.how[-1]["eval_bytes"] for rung in rungs}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{stage} on {size}" for stage, size in sizes.items())
        raise ConfigError(
            f"the rungs were measured on different amounts of held-out text, so one law does not hold for all: "
            f"{listed} bytes; set eval_bytes back, or delete the folders of those that were measured otherwise"
        )


def forecast(target: Rung, ladder: Sequence[Measured], draws: int = DRAWS) -> LossForecast:
    """The law of all rungs at the target, that of all but the deepest at the deepest; `draws`: for each interval."""
    deepest = ladder[-1].rung.model.num_layers
    below = [run.trained for run in ladder if run.rung.model.num_layers < deepest]
    checks = tuple(
        Check(run, predict(below, run.rung.params, run.rung.tokens, draws=draws).loss)
        for run in ladder
        if run.rung.model.num_layers == deepest
    )
    prediction = predict([run.trained for run in ladder], target.params, target.tokens, draws=draws)
    cost = power_law([run.rung.flops for run in ladder], [run.core_s for run in ladder], target.flops)
    return LossForecast(target, tuple(ladder), checks, prediction, cost)


def rungs_table(known: LossForecast) -> Table:
    """The rungs and what was measured."""
    columns = ("stage", "layers", "d_model", "parameters", "tokens", "batch", "learning rate", "FLOPs", "bits per byte",
               "core time")  # fmt: skip
    rows = tuple((*_row(run.rung), significant(run.loss), duration(run.core_s)) for run in known.ladder)
    return Table("The ladder; parameters without the embedding", columns, rows, columns[1:])


def plan_table(target: Rung, rungs: Sequence[Rung]) -> Table:
    """The rungs before they are trained, and the target."""
    columns = ("stage", "layers", "d_model", "parameters", "tokens", "batch", "learning rate", "FLOPs")
    rows = tuple(_row(rung) for rung in (*rungs, target))
    return Table("The ladder and its target; parameters without the embedding", columns, rows, columns[1:])


def checks_table(known: LossForecast) -> Table:
    """The deepest rung's runs, predicted by the others."""
    columns = ("stage", "predicted", f"{LEVEL:.0%} interval", "measured", "inside")
    rows = tuple(
        (check.measured.rung.stage, significant(check.predicted.value), _between(check.predicted),
         significant(check.measured.loss), "yes" if check.is_inside else "no")
        for check in known.checks
    )  # fmt: skip
    return Table("Check: the deepest rung, predicted by those below it", columns, rows, columns[1:4])


def target_table(known: LossForecast, price: PriceConfig) -> Table:
    """The target's forecast."""
    law, run, at = known.prediction.law, known.target, known.prediction
    costs = Estimate(*(price.money(value) for value in asdict(known.core_s).values()))
    rows = (
        ("parameters", count(run.params), ""),
        ("tokens", count(run.tokens), ""),
        ("tokens per parameter", significant(run.tokens / run.params), ""),
        (
            "tokens per parameter with the lowest loss at these FLOPs",
            significant(at.best_ratio.value),
            _between(at.best_ratio),
        ),
        ("training FLOPs", flops(run.flops), ""),
        ("held-out bits per byte", significant(at.loss.value), _between(at.loss)),
        ("core time", duration(known.core_s.value), f"{duration(known.core_s.low)} to {duration(known.core_s.high)}"),
        (
            "cost",
            money(costs.value, price.currency),
            f"{money(costs.low, price.currency)} to {money(costs.high, price.currency)}",
        ),
        ("law", _formula(law), ""),
    )
    return Table(f"Forecast of train.{run.stage}", ("of the target", "predicted", f"{LEVEL:.0%} interval"), rows)


def scaling_report(known: LossForecast, name: str, price: PriceConfig) -> Report:
    """The forecast as a page: law and runs drawn, tables."""
    note = Paragraph(
        "The law L = E + A / N^alpha + B / D^beta is fitted to the logarithms of all runs' held-out losses with the "
        "Huber loss. Intervals are drawn from the fit with the residuals' scatter; they hold for targets that follow "
        "the same law, and grow with the distance from the ladder. Core time is a power law of the FLOPs here."
    )
    charts = Charts(tuple(_chart(known, share) for share in reversed(SHARES)))
    blocks = (target_table(known, price), charts, checks_table(known), rungs_table(known), note)
    section = ReportSection("scaling", f"Forecast of train.{known.target.stage}", blocks)
    return Report(f"{name}: scaling", "A ladder of small models, and what it says about the large one.", (section,))


def _chart(known: LossForecast, share: float) -> LineChart:
    """The rungs of one budget per parameter, the law through them, and the target if it has this budget."""
    runs = [run for run in known.ladder if run.rung.share == share]
    ends = [*runs, known.target] if share == 1 else runs
    law = _law_between(known.prediction.law, [(run.rung if isinstance(run, Measured) else run) for run in ends])
    series = [
        Series("law", law),
        Series("trained", tuple((run.rung.flops, run.loss) for run in runs), dots=True),
    ]
    if share == 1:
        at = known.prediction.loss
        series.append(
            Series("target", tuple((known.target.flops, loss) for loss in (at.low, at.value, at.high)), dots=True)
        )
    ratio = significant(share * known.target.tokens / known.target.params, 3)
    return LineChart(
        f"{ratio} tokens per parameter", "held-out bits per byte", tuple(series), over="FLOPs", is_log=True
    )


def _law_between(law: LossLaw, runs: Sequence[Rung]) -> tuple[tuple[float, float], ...]:
    """The law from the first run to the last, all three of FLOPs, parameters and tokens on a logarithmic scale."""
    first, last = runs[0], runs[-1]

    def between(low: float, high: float, at: float) -> float:
        return low * (high / low) ** at

    points = []
    for number in range(POINTS):
        at = number / (POINTS - 1)
        params, tokens = between(first.params, last.params, at), between(first.tokens, last.tokens, at)
        points.append((between(first.flops, last.flops, at), law.loss(params, tokens)))
    return tuple(points)


def _row(rung: Rung) -> tuple[str, ...]:
    model, train = rung.model, rung.train
    return (rung.stage, count(model.num_layers), count(model.d_model), count(rung.params), count(rung.tokens),
            count(train.global_batch_size), f"{train.optimizer.learning_rate:g}", flops(rung.flops))  # fmt: skip


def _facts(rung: Rung) -> dict[str, Any]:
    return {"stage": rung.stage, "params": rung.params, "tokens": rung.tokens, "flops": rung.flops}


def _between(estimate: Estimate) -> str:
    return f"{significant(estimate.low)} to {significant(estimate.high)}"


def _formula(law: LossLaw) -> str:
    return f"{law.irreducible:.3f} + {law.a:.3g} / N^{law.alpha:.3f} + {law.b:.3g} / D^{law.beta:.3f}"
