"""The sections of a report, in order; those that the run has no numbers for are left out."""

from collections.abc import Iterator

from lifecycle.report.blocks import Report, ReportSection
from lifecycle.report.chain_section import chain_section, machine_section, samples_section, version_section
from lifecycle.report.curves import has_held_out
from lifecycle.report.data_section import data_section, rows_section, tokenizer_section
from lifecycle.report.evaluation_section import evaluation_section
from lifecycle.report.format import moment
from lifecycle.report.numbers import Numbers
from lifecycle.report.rollouts_section import rollouts_sections
from lifecycle.report.summary import summary_section
from lifecycle.report.training_section import training_section
from lifecycle.report.win_rates_section import win_rates_section


def build_report(numbers: Numbers) -> Report:
    """Builds the report from its numbers."""
    newest = max(link.created for link in numbers.links)
    lead = f"Report of a run; its newest artifact was made at {moment(newest)} UTC."
    return Report(numbers.run, lead, tuple(_sections(numbers)))


def _sections(numbers: Numbers) -> Iterator[ReportSection]:
    yield summary_section(numbers)
    if numbers.tasks or numbers.baselines or any(map(has_held_out, numbers.trainings)):
        yield evaluation_section(numbers)
    if numbers.win_rates is not None:
        yield win_rates_section(numbers.win_rates)
    if numbers.samples:
        yield samples_section(numbers.samples)
    yield from (data_section(corpus, data) for corpus, data in numbers.data.items())
    if numbers.tokenizer is not None:
        yield tokenizer_section(numbers.tokenizer, numbers.tokens)
    if numbers.rows is not None:
        yield rows_section(numbers.rows)
    if numbers.trainings:
        yield training_section(numbers.trainings)
        yield from rollouts_sections([(training.name, training.rollouts) for training in numbers.trainings])
    if numbers.version is not None:
        yield version_section(numbers.version)
    yield chain_section(numbers)
    yield machine_section(numbers)
