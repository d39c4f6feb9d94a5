"""Reports of runs with other graphs than three stages: what a run does not have is not in its report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_run import NASTY, STEPS, Run, build_five_stages, build_pretraining, build_run, build_tuning, make_data

from lifecycle.core.artifact import content_hash
from lifecycle.report.blocks import Charts, Headline, LineChart, Paragraph, Report, Table
from lifecycle.report.contents import build_report
from lifecycle.report.curves import line_charts
from lifecycle.report.html import render_html
from lifecycle.report.markdown import render_markdown
from lifecycle.report.trained import read_training
from lifecycle.training.config import TrainConfig
from lifecycle.training.objectives.registry import ObjectiveKind


def blocks(report: Report, section: str, kind: type) -> list[Any]:
    (chosen,) = [s for s in report.sections if s.name == section]
    return [block for block in chosen.blocks if isinstance(block, kind)]


def table(report: Report, section: str, caption: str) -> Table:
    (chosen,) = [block for block in blocks(report, section, Table) if block.caption.startswith(caption)]
    return chosen


def names(report: Report) -> list[str]:
    return [section.name for section in report.sections]


def tiles(report: Report) -> dict[str, str]:
    (headline,) = blocks(report, "summary", Headline)
    return {tile.name: tile.value for tile in headline.tiles}


@pytest.mark.parametrize("build", [build_pretraining, build_tuning, build_five_stages])
def test_every_graph_is_rendered_in_both_forms(build: Any, tmp_path: Path) -> None:
    made: Run = build(tmp_path)
    report = build_report(made.collect())
    page, markdown = render_html(report), render_markdown(report)
    for stage in made.trained:
        assert f"<h3>{stage.name} ({stage.objective})</h3>" in page
        assert f"### {stage.name} ({stage.objective})" in markdown
    assert page == render_html(build_report(made.collect()))


def test_pre_training_alone(tmp_path: Path) -> None:
    report = build_report(build_pretraining(tmp_path).collect())
    assert names(report) == ["summary", "evaluation", "data", "tokenizer", "training", "version", "chain", "machine"]
    assert list(tiles(report)) == ["MFU", "wall time", "cost"]
    (what,) = blocks(report, "summary", Paragraph)
    assert "Of 10,240 training tokens base read 5,120 (50.0 %)." in what.text
    (charts,) = blocks(report, "training", Charts)
    assert [chart.title for chart in charts.items] == ["Loss", "Held-out text during training", "Throughput"]
    assert table(report, "training", "Settings").rows[0][-1] == "", "no mixture, nothing to say of it"


def test_a_mixture_has_a_table_of_shares_and_epochs(tmp_path: Path) -> None:
    made = Run(tmp_path)
    make_data(made)
    shares = {NASTY: {"tokens": 100, "share": 0.25, "epochs": 12.8}}
    made.training("base", "next_token", STEPS, counted={"mixture": shares}, mixture="size")
    made.release("base")
    report = build_report(made.collect())
    found = table(report, "training", "Mixtures")
    assert [list(row) for row in found.rows] == [["base", NASTY, "100", "25.0 %", "12.80"]]
    assert table(report, "training", "Settings").rows[0][-1] == "mixture size"


def test_a_bundle_tuned_on_own_rows(tmp_path: Path) -> None:
    report = build_report(build_tuning(tmp_path / "run").collect())
    assert names(report) == ["summary", "evaluation", "tokenizer", "rows", "training", "version", "chain", "machine"]
    assert tiles(report)["choice: accuracy"] == "0.500"
    assert tiles(report)["held-out preference accuracy, polish"] == "80.0 %"
    settings = table(report, "training", "Settings")
    bundle = content_hash(tmp_path / "published")
    assert [row[:3] for row in settings.rows] == [("chat", "sft", f"bundle {bundle[:12]}"), ("polish", "orpo", "chat")]
    assert settings.rows[1][-1] == "beta 0.2"
    assert table(report, "evaluation", "Results").columns[4:] == ("compare with", "after chat", "after polish")
    assert table(report, "evaluation", "Changes").columns == ("task", "chat to polish", "test")
    assert not any("trigram" in block.caption for block in blocks(report, "evaluation", Table))


def test_five_stages_of_which_two_go_on_from_one(tmp_path: Path) -> None:
    numbers = build_five_stages(tmp_path).collect()
    report = build_report(numbers)
    text, choice = numbers.tasks
    assert list(text.changes) == [("ground", "chat"), ("chat", "by_dpo"), ("chat", "by_orpo")]
    assert (text.first, text.last) == ("ground", "by_dpo")
    assert choice.changes["chat", "by_orpo"].difference == pytest.approx(5 / 40)
    assert table(report, "evaluation", "Results").rows[0][4] == "trigram 1.190"
    starts = [row[2] for row in table(report, "training", "Settings").rows]
    assert starts == ["fresh weights", "ground", "anneal", "chat", "chat"]
    summary = " ".join(block.text for block in blocks(report, "summary", Paragraph))
    assert "ground (next_token), anneal (next_token), chat (sft), by_dpo (dpo), by_orpo (orpo)" in summary
    assert "From ground to by_dpo its bits per byte rose" in summary
    assert tiles(report)["choice: accuracy"] == "0.625"  # of the exported weights


def test_two_baselines_that_saw_the_same_are_one(tmp_path: Path) -> None:
    report = build_report(build_five_stages(tmp_path).collect())
    assert [name for name in tiles(report) if "trigram" in name] == ["trigram of the whole split"]
    assert len(table(report, "evaluation", "Interpolated").rows) == 1


def test_results_give_the_table_of_before_and_after(tmp_path: Path) -> None:
    """Everything that a page about a run would quote: baselines, scores after each stage, held-out rows."""
    report = build_report(build_run(tmp_path).collect())
    results = table(report, "evaluation", "Results")
    assert [row[0] for row in results.rows] == ["text", "choice"]
    assert results.columns[4:] == ("compare with", "after pretrain", "after sft", "after prefer")
    assert results.rows[0][4] == "trigram 1.190" and results.rows[1][4] == "chance 0.250"
    found = table(report, "evaluation", "Rows of tasks")
    result = results.rows[1][results.columns.index("after prefer")]
    assert found.rows == (("choice", "4", "3", "2", "5", "0", result),)
    assert found.columns[3:6] == ("found in documents", "documents", "left in documents")
    assert table(report, "evaluation", "Held-out rows").rows == (
        ("pretrain", "Held-out text during training", "8.000", "2.100"),
        ("prefer", "Preference accuracy, held out", "0.8000", "0.8000"),
        ("prefer", "Preference margin, held out", "1.000", "2.000"),
    )


def test_metrics_of_an_objective_that_the_report_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class RewardConfig(TrainConfig):
        objective: str = "reward"
        margin: float = 0.5

    kind = ObjectiveKind("reward", RewardConfig, "pairs", "somewhere:else")
    monkeypatch.setattr("lifecycle.training.objectives.registry._KINDS", {"reward": kind})
    made = build_pretraining(tmp_path)
    records = [record | {"agreement_rate": 0.5, "heldout_agreement_rate": 0.4} for record in STEPS]
    made.training("judge", "reward", records, margin=0.5)
    made.trained = [replace(made.trained[-1], is_exported=True)]
    numbers = made.collect()
    charts = {chart.title: chart for chart in line_charts(numbers.trainings[0])}
    assert list(charts) == ["Loss", "agreement rate", "Throughput"]
    assert isinstance(chart := charts["agreement rate"], LineChart)
    assert [(series.name, series.dots) for series in chart.series] == [("training", False), ("held out", True)]
    assert table(build_report(numbers), "training", "Settings").rows[0][-1] == "margin 0.5"


def test_the_experts_load_and_the_modules_losses_are_drawn_over_the_steps(tmp_path: Path) -> None:
    made = Run(tmp_path)
    load = {"expert_load_max": 2.5, "router_max_load": 1.5, "expert_load_min": 0.0, "experts_idle": 3.0}
    made.training("base", "next_token", [step | load | {"mtp_loss_1": 4.0, "mtp_loss_2": 5.0} for step in STEPS])
    charts = {chart.title: chart for chart in line_charts(read_training(made.trained[-1]))}
    drawn = {title: [(series.name, series.points[-1]) for series in chart.series] for title, chart in charts.items()}
    assert drawn.pop("Experts' load in a step") == [
        ("busiest expert, worst layer", (20, 2.5)),
        ("busiest expert, mean of the layers", (20, 1.5)),
        ("idlest expert, worst layer", (20, 0.0)),
    ]
    assert drawn.pop("Experts that no token chose") == [("experts", (20, 3.0))]
    further = [("next token", (20, 3.0)), ("module 1", (20, 4.0)), ("module 2", (20, 5.0))]
    assert drawn.pop("Loss of further tokens") == further
    assert list(drawn) == ["Loss", "Throughput"]


def test_a_task_measured_during_training_has_a_chart_with_its_error_and_chance(tmp_path: Path) -> None:
    made = build_pretraining(tmp_path)
    own = {"arc/accuracy": 0.4, "arc/accuracy_stderr": 0.05, "arc/accuracy_per_byte": 0.3, "arc/chance": 0.25}
    made.training("measured", "next_token", [record | own for record in STEPS])
    made.trained = [replace(made.trained[-1], is_exported=True)]
    charts = {chart.title: chart for chart in line_charts(made.collect().trainings[0])}
    assert list(charts) == ["Loss", "arc during training", "Throughput"]
    accuracy, chance = charts["arc during training"].series
    assert (accuracy.name, accuracy.dots, dict(accuracy.errors)) == ("accuracy", True, {10: 0.05, 20: 0.05})
    assert (chance.name, chance.points, chance.errors) == ("chance", ((10, 0.25), (20, 0.25)), ())
    assert "arc during training" in render_html(build_report(made.collect()))


def test_a_quantity_has_the_same_axis_in_every_stage_and_task(tmp_path: Path) -> None:
    numbers = build_five_stages(tmp_path).collect()
    charts = [chart for training in numbers.trainings for chart in line_charts(training)]
    axes = {(chart.title, chart.axis) for chart in charts}
    assert {("Loss", "data"), ("Throughput", "amount"), ("Preference accuracy", "share")} <= axes
    assert len(axes) == len({title for title, _ in axes})
    (drawn,) = blocks(build_report(numbers), "evaluation", Charts)
    assert [(chart.title, chart.axis) for chart in drawn.items] == [("text", "data"), ("choice", "share")]
