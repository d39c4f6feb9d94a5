"""The section on win rates: whose answers a judge prefers, with and without the influence of their lengths."""

from collections.abc import Iterator, Mapping
from typing import Any

from lifecycle.report.blocks import Charts, Exchanges, Heading, IntervalChart, Measure, Paragraph, ReportSection, Table
from lifecycle.report.format import count, interval
from lifecycle.report.rollouts_section import shortened

VERDICTS = {1.0: "wins", 0.0: "loses", 0.5: "a tie"}


def win_rates_section(found: Mapping[str, Any]) -> ReportSection:
    """The rates of each pair of stages, drawn beside an even one, and some comparisons."""
    pairs = found["pairs"]
    text = (
        f"Answers (greedy decoding) to the same held-out prompts, compared by {found['judge']} twice, with the two in "
        "either place: who wins only once has a tie, which counts half. Without an answer: comparisons that the judge "
        "did not make. The length-controlled rate is what a logistic regression on the difference of lengths (Dubois "
        "et al. 2024, arXiv 2404.04475) gives at equal ones; its interval is a bootstrap's."
    )
    chart = IntervalChart("Win rates", "share of comparisons", tuple(_measures(pairs)), ("even", 0.5), "share")
    shown = [block for pair in pairs for block in _comparisons(pair)]
    return ReportSection("win-rates", "Win rates", (Paragraph(text), _table(pairs), Charts((chart,)), *shown))


def _table(pairs: list[Mapping[str, Any]]) -> Table:
    columns = ("stage", "against", "prompts", "wins", "ties", "losses", "win rate", "length-controlled",
               "letters of each", "without an answer")  # fmt: skip
    rows = tuple(
        (
            *pair["pair"], *(count(pair[name]) for name in ("n", "wins", "ties", "losses")), _rate(pair["rate"]),
            "all differ alike" if pair["controlled"] is None else _rate(pair["controlled"]),
            " and ".join(map(count, pair["letters"])), count(pair["faults"]),
        )
        for pair in pairs
    )  # fmt: skip
    return Table("Win rates [95 % interval]", columns, rows, columns[2:])


def _rate(rate: Mapping[str, float]) -> str:
    return interval(rate["mean"], rate["low"], rate["high"])


def _measures(pairs: list[Mapping[str, Any]]) -> Iterator[Measure]:
    for pair in pairs:
        for name, said in (("rate", ""), ("controlled", ", length-controlled")):
            if pair[name] is not None:
                yield Measure(f"{pair['pair'][0]} against {pair['pair'][1]}{said}", **pair[name])


def _comparisons(pair: Mapping[str, Any]) -> Iterator[Heading | Exchanges]:
    own, other = pair["pair"]
    yield Heading(f"{own} against {other}: some of the comparisons")
    yield Exchanges(
        tuple(
            (
                ("prompt", shortened(one["prompt"])), (own, shortened(one["first"])),
                (other, shortened(one["second"])), ("verdict", f"{own}: {VERDICTS[one['score']]}"),
            )
            for one in pair["shown"]
        )
    )  # fmt: skip
