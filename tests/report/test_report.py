"""The report of a run: its numbers, that both renderings say the same, and that nobody's text becomes mark-up."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from report_run import MODEL, NASTY, PEAK, SIZES, Run, build_run, text_result
from scipy import stats as scipy_stats

from lifecycle.core.config import load_config
from lifecycle.core.progress import Silent
from lifecycle.model.counts import forward_flops_per_token
from lifecycle.report import data_section
from lifecycle.report.blocks import (
    Charts,
    Exchange,
    Exchanges,
    Facts,
    Headline,
    LineChart,
    Paragraph,
    Report,
    Table,
)
from lifecycle.report.contents import build_report
from lifecycle.report.data_section import rows_section
from lifecycle.report.evaluation_section import evaluation_section
from lifecycle.report.html import render_html
from lifecycle.report.markdown import render_markdown
from lifecycle.report.numbers import Numbers
from lifecycle.report.training_section import training_section
from lifecycle.stages.config import RunConfig
from lifecycle.stages.report import run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def numbers(made: Run) -> Numbers:
    samples = [Exchange(NASTY, f"line\n```\n{NASTY}\x00", "true")]
    return made.collect(samples, "tiny <run>")


@pytest.fixture(scope="module")
def report(numbers: Numbers) -> Report:
    return build_report(numbers)


def test_a_run_that_goes_on_says_from_where_and_with_what(numbers: Numbers) -> None:
    goes_on = {"stage": "first", "step": 60, "settings": {"seq_len": [4096, 8192]}}
    training = numbers.trainings[0]
    section = training_section((replace(training, stats={**training.stats, "goes_on": goes_on}),))
    assert any(isinstance(b, Table) and b.caption == "Settings" and b.rows[0][2] == "first@60" for b in section.blocks)
    assert Paragraph("Goes on from step 60 of first with seq_len 4096 -> 8192.") in section.blocks


def test_rows_that_a_stage_dropped_or_cut_are_told(numbers: Numbers) -> None:
    training = numbers.trainings[0]
    dropped = {"dropped": {"longer than 64 tokens": 2}, "dropped_examples": ["own.jsonl:3: longer than 64 tokens (70)"]}
    stats, settings = {**training.stats, **dropped, "truncated": 5}, {"truncation": "keep_end", "epochs": 2.0}
    section = training_section((replace(training, stats=stats, settings={**training.settings, **settings}),))
    assert any(
        isinstance(b, Table) and b.caption == "Settings" and b.rows[0][3] == "20 (2 epochs)" for b in section.blocks
    )
    told = "longer than 64 tokens 2. The first: own.jsonl:3: longer than 64 tokens (70)."
    assert Paragraph(f"Rows that could not be learned from: {told}") in section.blocks
    assert Paragraph("Rows that were cut to fit (keep_end): 5.") in section.blocks


class Page(HTMLParser):
    """The page as a browser without scripts sees it: tags with their attributes, texts by tag."""

    VOID = frozenset({"meta", "line", "circle", "rect", "polyline", "br"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
            self.texts.append((tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self.texts[-1][0] == self._open[-1]:
            self.texts[-1] = (self._open[-1], self.texts[-1][1] + data)

    def of(self, *tags: str) -> list[str]:
        return [" ".join(text.split()) for tag, text in self.texts if tag in tags]


def markdown_texts(markdown: str) -> list[str]:
    """Every line and cell of the Markdown as a CommonMark reader shows it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    texts = [token.content for token in tokens if token.type == "fence"]
    for token in tokens:
        if token.type == "inline":
            assert {child.type for child in token.children or ()} <= {"text", "text_special"}, token.content
            texts.append("".join(child.content for child in token.children or ()))
    return texts


def shown_texts(report: Report) -> list[str]:
    """Everything that the report says, block by block."""
    shown = []
    for section in report.sections:
        shown.append(section.title)
        for block in section.blocks:
            match block:
                case Table():
                    shown += [cell for row in (block.columns, *block.rows) for cell in row]
                case Facts():
                    shown += [value for _, value in block.items]
                case Headline():
                    shown += [text for tile in block.tiles for text in (tile.name, tile.value, tile.remark)]
                case Charts():
                    tables = [chart.table for chart in block.items if isinstance(chart, LineChart)]
                    shown += [cell for table in tables for row in table.rows for cell in row]
    return [" ".join(text.replace("\udce9", "\ufffd").split()) for text in shown if text]


def test_utilisation_and_cost(numbers: Numbers) -> None:
    pretrain = numbers.trainings[0]
    per_token = 3 * forward_flops_per_token(MODEL, 64)
    assert pretrain.flops_per_token == per_token
    assert pretrain.utilisation == pytest.approx(1000 * per_token / (2 * PEAK))  # two devices
    assert pretrain.flops_per_core_s == pytest.approx(20 * 4 * 64 * per_token / 3.0)
    assert numbers.core_s == pytest.approx(sum(link.core_s for link in numbers.links))
    assert numbers.money == pytest.approx(numbers.core_s)  # 3600 a core-hour
    assert [link.stage for link in numbers.links][-2:] == ["export", "register"]
    assert pretrain.curves["loss"] == ((10, 4.0), (20, 3.0))


def test_the_model_against_the_baselines(numbers: Numbers) -> None:
    seen, whole = numbers.baselines
    differences = [-0.2, -0.15, -0.2, -0.1]
    weighted = sum(d * w for d, w in zip(differences, SIZES, strict=True)) / sum(SIZES)
    against = seen.against["pretrain"]
    assert against.difference == pytest.approx(weighted)
    assert against.low <= against.difference <= against.high < 0 < whole.against["pretrain"].low
    lead = build_report(numbers).sections[0].blocks[2]
    assert isinstance(lead, Paragraph)
    lead = lead.text
    assert "better than the trigram of as many tokens as seen" in lead
    assert "worse than the trigram of the whole split" in lead
    assert "rose by 4.9 %" in lead  # 2.04 + 0.1


def test_changes_are_paired(numbers: Numbers) -> None:
    choice = numbers.tasks[1]
    assert choice.chance == 0.25
    assert choice.changes["pretrain", "sft"].difference == pytest.approx(15 / 40)
    assert choice.changes["pretrain", "sft"].low > 0
    assert choice.changes["sft", "prefer"].difference == 0
    expected = scipy_stats.binomtest(25, 40).proportion_ci(method="wilson")
    assert (choice.final.low, choice.final.high) == pytest.approx((expected.low, expected.high))


def evaluation_tables(numbers: Numbers) -> list[Table]:
    return [block for block in evaluation_section(numbers).blocks if isinstance(block, Table)]


def test_the_rows_of_tasks_in_documents_are_listed(numbers: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = evaluation_tables(numbers)
    (table,) = [table for table in tables if "found in training" in table.caption]
    assert table.caption == "Rows of choice found in training documents: 2" and table.folded
    excerpt, columns = NASTY, ("row", "documents", "what became of them", "the nearest", "in common")
    assert table.columns == (*columns, "the longest passage") and table.rows == (
        ("rows.jsonl:3", "2", "removed 1, cut 1", "docs:a", "30.0 %", excerpt),
        ("rows.jsonl:7", "1", "removed 1", "docs:a", "70.0 %", excerpt),
    )
    monkeypatch.setattr(data_section, "HIT_ROWS", 1)
    data = numbers.data[""]
    several = evaluation_tables(replace(numbers, data={"web": data, "code": data}))
    assert [table.caption for table in several if "Rows of choice" in table.caption] == [
        f"Rows of choice found in training documents of {corpus}: 2; those in the most documents are shown, "
        "contamination.parquet has 1 more" for corpus in ("web", "code")
    ]  # fmt: skip
    without = replace(numbers, data={"": replace(data, evidence={})})
    assert evaluation_tables(without) == [other for other in tables if other != table]
    assert len(evaluation_tables(replace(numbers, data={}))) == len(tables) - 2


def test_other_text_than_the_baselines_is_not_compared(made: Run, tmp_path: Path) -> None:
    other = Run(tmp_path)
    other.artifacts, other.trained = dict(made.artifacts), list(made.trained)
    for stage in ("pretrain", "sft", "prefer"):
        other.evaluation(stage, [text_result("text", [2.0, 2.1, 2.0, 2.0], [1, 2, 3, 4])])
    numbers = other.collect()
    assert numbers.text_task is None
    assert [baseline.against for baseline in numbers.baselines] == [{}, {}]
    markdown = render_markdown(build_report(numbers))
    assert "better than" not in markdown and "trigram of as many tokens as seen" in markdown


def test_the_page_stands_alone(report: Report) -> None:
    page = Page(render_html(report))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "base", "form", "b"}
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert not {"src", "action"} & attributes.keys()
        assert tag in ("path", "text", "use") or "style" not in attributes  # of the drawings
        assert not any(name.startswith("on") for name in attributes)
        href = attributes.get("href")
        assert href is None or (href.startswith("#") and href[1:] in ids)
    assert "url(" not in render_html(report)


def test_the_page_can_be_read_aloud(report: Report) -> None:
    page = Page(render_html(report))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    charts = [block for section in report.sections for block in section.blocks if isinstance(block, Charts)]
    assert len(drawings) == sum(len(block.items) for block in charts) >= 10
    assert all(drawing["role"] == "img" and len(drawing["aria-label"] or "") > 20 for drawing in drawings)
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags


def test_both_renderings_say_everything(report: Report) -> None:
    page = Page(render_html(report)).of("th", "td", "dd", "dt", "h2", "p")
    markdown = [" ".join(text.split()) for text in markdown_texts(render_markdown(report))]
    facts = [line.partition(": ")[2] for line in markdown]
    said = shown_texts(report)
    assert len(said) > 200
    assert set(said) <= set(page)
    assert set(said) <= {*markdown, *facts}


def test_texts_stay_texts(report: Report) -> None:
    question = NASTY
    answer = f"line\n```\n{NASTY}\ufffd"
    page = Page(render_html(report))
    texts = [text for tag, text in page.texts if tag == "dd"]
    assert question in texts and answer in texts
    assert "tiny <run>" in page.of("h1")
    fences = markdown_texts(render_markdown(report))
    assert question + "\n" in fences and answer + "\n" in fences
    assert any(isinstance(block, Exchanges) for section in report.sections for block in section.blocks)


def test_rendering_is_deterministic(numbers: Numbers, report: Report) -> None:
    again = build_report(numbers)
    assert render_html(again) == render_html(report)
    assert render_markdown(again) == render_markdown(report)


@pytest.mark.slow
def test_the_stage_writes_both_files_and_its_samples(made: Run, tmp_path: Path) -> None:
    config = load_config(RunConfig, Path("configs/debug.yaml"))
    samples = run(config, made.artifacts, tmp_path, Silent()).stats["samples"]
    assert len(samples) >= 3 and all(set(sample) == {"question", "answer", "reference"} for sample in samples)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for sample in samples:
        assert sample["question"] in page.of("dd") and sample["question"] in markdown
    json.dumps(samples)


def test_own_rows_are_counted_by_what_became_of_them() -> None:
    dropped = {"doubled": 2, "overlaps an evaluation row": 1}
    counted = {"rows": 7, "kept": 4, "train": 3, "heldout": 1, "dropped": dropped, "examples": ["own.jsonl:2: doubled"]}
    table, examples = rows_section({"own": {"chat": counted}}).blocks
    assert isinstance(table, Table) and isinstance(examples, Table)
    assert table.rows == (("chat", "7", "4", "3", "1", "doubled 2, overlaps an evaluation row 1"),)
    assert examples.rows == (("own.jsonl:2: doubled",),)


def test_prompts_of_tasks_are_counted() -> None:
    task = {"task": "leg_counting", "rows": 40, "kept": 38, "heldout": 10, "dropped": {"doubled": 2}}
    (table,) = rows_section({"reasoning_gym": [task]}).blocks
    assert isinstance(table, Table) and table.rows == (("leg_counting", "38", "10", "doubled 2"),)


def test_the_wall_time_of_each_stage_is_shown_by_cause(report: Report) -> None:
    (section,) = (section for section in report.sections if section.name == "training")
    (table,) = (b for b in section.blocks if isinstance(b, Table) and b.caption == "Where the wall time went")
    rows = {row[0]: row[1] for row in table.rows}
    assert rows == {
        "wall time": "20.0 s", "goodput": "75.0 %", "steps": "15.0 s (75.0 %)", "start": "5.0 s (25.0 %)",
        "step time, p50": "1 s", "step time, p90": "1 s", "step time, p99": "1 s", "memory": "1.00 GB",
        "failures": "none",
    }  # fmt: skip
