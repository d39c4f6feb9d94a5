"""The sections of a report, in their order."""

from lifecycle.report.blocks import Report
from lifecycle.report.chain_section import chain_section, machine_section, samples_section, version_section
from lifecycle.report.data_section import data_section, rows_section, tokenizer_section
from lifecycle.report.evaluation_section import evaluation_section
from lifecycle.report.format import moment
from lifecycle.report.numbers import Numbers
from lifecycle.report.summary import summary_section
from lifecycle.report.training_section import training_section


def build_report(numbers: Numbers) -> Report:
    sections = [
        summary_section(numbers),
        evaluation_section(numbers),
        data_section(numbers),
        tokenizer_section(numbers),
        rows_section(numbers),
        training_section(numbers),
        version_section(numbers),
        chain_section(numbers),
        machine_section(numbers),
    ]
    if numbers.samples:
        sections.insert(2, samples_section(numbers))
    newest = max(link.created for link in numbers.links)
    lead = f"Report of a run; its newest artifact was made at {moment(newest)} UTC."
    return Report(numbers.run, lead, tuple(sections))
