"""Stage `report`: generates answers to a few held-out questions with the exported model, and writes the run's
report."""

from dataclasses import asdict
from pathlib import Path

from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.inference.bundle import load_bundle
from lifecycle.report.blocks import Exchange
from lifecycle.report.contents import build_report
from lifecycle.report.html import render_html
from lifecycle.report.machine import machine_facts
from lifecycle.report.markdown import render_markdown
from lifecycle.report.numbers import collect
from lifecycle.report.samples import ask, held_out_questions
from lifecycle.stages.config import RunConfig
from lifecycle.stages.reported import trained_stages
from lifecycle.stages.stage import Inputs, Outcome

QUESTIONS = "chat-heldout.jsonl"  # in the rows' artifact


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Writes the report, as HTML and as Markdown."""
    samples = _samples(inputs, progress)
    trained, model = list(trained_stages(config, inputs)), config.model_of(config.exported)
    report = build_report(collect(config.name, model, trained, inputs, samples, config.price, machine_facts()))
    write_text(out / "report.html", render_html(report))
    write_text(out / "report.md", render_markdown(report))
    return Outcome({"samples": [asdict(sample) for sample in samples]})


def _samples(inputs: Inputs, progress: Progress) -> list[Exchange]:
    """The exported model's answers; none for a run without chat rows."""
    if "rows" not in inputs or not (path := inputs["rows"].path / QUESTIONS).is_file():
        return []
    progress.note("generating answers to held-out questions")
    model = load_bundle(inputs["export"].path)
    return ask(model, held_out_questions(path, model))
