"""What a policy's report shows of its completions: a few, of any content and length, also while the stage goes on."""

import json
from pathlib import Path

import pytest
from report_run import NASTY, build_policy, build_pretraining, rollouts
from test_report import Page, markdown_texts

import lifecycle.rl.config  # noqa: F401 - registers grpo
from lifecycle.report.blocks import Charts, Exchanges, Heading, LineChart, Paragraph, Report
from lifecycle.report.contents import build_report
from lifecycle.report.html import render_html
from lifecycle.report.markdown import render_markdown
from lifecycle.report.rollouts_section import HEAD, TAIL, Rollouts, read_rollouts, rollouts_sections


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(build_policy(tmp_path_factory.mktemp("policy") / "run").collect())


def test_held_out_prompts_are_shown_once_with_their_answers_in_order(report: Report) -> None:
    (section,) = (section for section in report.sections if section.name == "rollouts")
    headings = [block.text for block in section.blocks if isinstance(block, Heading)]
    assert headings == [
        "policy: held-out prompts, as training went on", "policy: sampled for step 10", "policy: sampled for step 20",
    ]  # fmt: skip
    held_out, first, _ = (block for block in section.blocks if isinstance(block, Exchanges))
    (said,) = held_out.items
    assert [name for name, _ in said] == ["prompt", *["after step 0", "reward", "after step 10", "reward"],
                                          *["after step 20", "reward"]]  # fmt: skip
    assert said[0][1] == f"{NASTY} What is 1 + 1?" and said[2][1] == f"0.5000 (maths 0.5000, {NASTY} none)"
    assert len(first.items) == 2 and first.items[1][2] == ("reward", "none")


def test_completions_stay_texts_and_are_bounded(report: Report) -> None:
    page, markdown = render_html(report), render_markdown(report)
    assert "<script" not in page.lower()
    shown = Page(page).of("dd")
    assert f"At 20 it was {NASTY}" in shown and f"At 20 it was {NASTY}\n" in markdown_texts(markdown)
    (long,) = {text for text in shown if "letters]" in text}
    assert "[2,100 letters]" in long and len(long) < HEAD + TAIL + 30
    assert long.startswith("one two one") and long.endswith("two")


def test_a_policys_metrics_have_charts(report: Report) -> None:
    (training,) = (section for section in report.sections if section.name == "training")
    (charts,) = (block for block in training.blocks if isinstance(block, Charts))
    series = {chart.title: [one.name for one in chart.series] for chart in charts.items if isinstance(chart, LineChart)}
    assert series["Reward"] == ["sampled", "held out, likeliest"]
    lengths = ["mean", "shortest", "longest", "mean of those that ended", "held out, mean"]
    assert series["Length of completions"] == lengths and len(series["Clipped ratios"]) == 5
    assert series["Reward maths"] == ["mean", "standard deviation"] and len(series["Spread of rewards"]) == 2
    assert {"Divergence from the initial model", "Entropy", "Sampler and trainer"} <= series.keys()
    assert not {title for title in series if "/" in title or "_" in title or "num" in title}  # each has words
    table = "\n".join(render_markdown(report).splitlines())
    assert "| policy | Reward, held out, likeliest | 0.2500 | 0.5000 |" in table


def test_a_run_without_rollouts_has_no_such_section(tmp_path: Path) -> None:
    names = [section.name for section in build_report(build_pretraining(tmp_path).collect()).sections]
    assert "rollouts" not in names


def test_samples_of_a_stage_that_goes_on(tmp_path: Path) -> None:
    """Its last line may be half written; a damaged file is named."""
    file = tmp_path / "rollouts.jsonl"
    assert read_rollouts(tmp_path) == Rollouts()
    file.write_text("".join(json.dumps(sample) + "\n" for sample in rollouts()) + '{"step": 30, "spl')
    found = read_rollouts(tmp_path)
    assert list(found.of("heldout")) == [0, 10, 20] and list(found.of("train")) == [10, 20]
    (section,) = rollouts_sections([("policy", found)], "so far")
    assert (section.name, section.title) == ("rollouts-so-far", "Completions so far")
    file.write_text("[]\n{}\n")
    (section,) = rollouts_sections([("policy", read_rollouts(tmp_path))])
    assert isinstance(section.blocks[1], Paragraph) and "rollouts.jsonl:1: damaged" in section.blocks[1].text
