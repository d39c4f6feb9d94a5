"""The sections on why documents were removed: reasons, scores, samples, duplicates, edits, contamination."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lifecycle.data.inspecting.breakdown import Breakdown
from lifecycle.data.inspecting.distributions import Distribution
from lifecycle.data.inspecting.evidence import Group
from lifecycle.data.inspecting.survey import Drawn, Survey
from lifecycle.data.selecting.contamination import Evidence, Key
from lifecycle.report.blocks import Block, Charts, Exchanges, Heading, Histogram, Paragraph, ReportSection, Table
from lifecycle.report.data_section import contamination_table, hits_of_heldout, hits_of_tasks
from lifecycle.report.format import count, share

NAMES = {"kept": "kept", "heldout": "held out"}
GROUP_SIZES = (1, 2, 4, 9, 99)  # the largest of each row in the table of groups, and one row for all others


def reasons_section(survey: Survey) -> ReportSection:
    """How many documents each reason removed."""
    counts = survey.reasons.counts
    if not counts:
        return ReportSection("reasons", "Reasons", (Paragraph("No document was removed."),))
    rows = tuple(
        (step.replace("_", " "), reason, count(of.first), count(of.any), count(of.only))
        for (step, reason), of in sorted(counts.items(), key=lambda entry: (-entry[1].any, entry[0]))
    )
    columns = ("step", "reason", "first reason", "a reason", "only reason")
    explained = Paragraph(
        "A document has every reason that the rules found. Without a rule, those of which it is the only reason "
        "go on to the next steps."
    )
    return ReportSection("reasons", "Reasons", (explained, Table("Documents removed", columns, rows, columns[2:])))


def scores_section(survey: Survey, classifiers: Mapping[str, Mapping[str, Any]]) -> ReportSection:
    """How many documents have which score; of classifiers, by their manifests, what their scores are worth."""
    explained = Paragraph(
        "All documents by each score that has a limit; a value on its limit passes. The number of documents is on a "
        "logarithmic axis, and so are counts with a long tail."
    )
    charts = Charts(tuple(map(_histogram, survey.distributions)))
    return ReportSection("scores", "Scores and limits", (explained, charts, *classifiers_table(classifiers)))


def classifiers_table(classifiers: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
    """How well classifiers told bad documents from good ones that they were not trained on."""
    if classifiers:
        names = ("auc", "f1", "precision", "recall", "calibration_error")
        rows = tuple(
            (
                name,
                count(of["heldout"]["documents"]),
                count(of["heldout"]["bad"]),
                *(f"{of['heldout'][n]:.4f}" for n in names),
            )
            for name, of in classifiers.items()
        )
        columns = (
            "classifier",
            "examples",
            "of them bad",
            "AUC",
            "F1 at 0.5",
            "precision",
            "recall",
            "calibration error",
        )
        yield Table("Classifiers on examples held out of their training", columns, rows, columns[1:])


def _histogram(distribution: Distribution) -> Histogram:
    score, outside = distribution.score, distribution.num_below + distribution.num_above
    limits = ((f"≥ {score.low:,g}", score.low), (f"≤ {score.high:,g}", score.high))
    of_all = share(outside / max(1, distribution.num_documents))
    among = f"{count(outside)} of {count(distribution.num_documents)} documents outside ({of_all})"
    reasons = "" if score.reasons == (score.column,) else f"{', '.join(score.reasons)}: "
    return Histogram(
        score.name,
        reasons + among,
        tuple(distribution.bins.edges.tolist()),
        tuple(distribution.counts.tolist()),
        (score.low, score.high),
        tuple((name, bound) for name, bound in limits if math.isfinite(bound)),
        distribution.bins.is_log,
    )


def samples_section(survey: Survey) -> ReportSection:
    """Documents to be read: kept ones, removed ones by reason, and those that a limit just keeps."""
    blocks: list[Block] = [Paragraph("Drawn at random by their ids and the run's seed: the same ones in every report.")]
    sizes = survey.breakdown.by(lambda cell: cell.outcome)
    for split in ("kept", "heldout"):
        if drawn := survey.drawn(split):
            blocks.append(_samples(f"{NAMES[split]}: {len(drawn)} of {count(sizes[split][0])}", drawn))
    blocks.append(Heading("Removed, by reason"))
    for (step, reason), of in sorted(survey.reasons.counts.items(), key=lambda entry: (-entry[1].any, entry[0])):
        drawn = survey.drawn((step, reason))
        blocks.append(_samples(f"{step.replace('_', ' ')}, {reason}: {len(drawn)} of {count(of.any)}", drawn))
    near = [(d.score, drawn) for d in survey.distributions if (drawn := survey.drawn(d.score))]
    blocks.append(Heading("Kept, the nearest to each limit"))
    blocks += [_samples(f"{score.name}, {', '.join(score.reasons)}", drawn) for score, drawn in near]
    return ReportSection("samples", "Samples", tuple(blocks))


def _samples(caption: str, drawn: Sequence[Drawn]) -> Exchanges:
    items = []
    for one in drawn:
        sample, more = one.sample, one.sample.size - len(one.sample.text)
        text = f"{sample.text}… ({count(more)} more characters)" if more else sample.text
        because = (("because", one.why),) if one.why else ()
        items.append((("document", f"{sample.name}  {sample.id[:12]}"), *because, ("text", text)))
    return Exchanges(tuple(items), caption)


def duplicates_section(survey: Survey) -> ReportSection:
    """Groups of duplicates: how large they are, and the largest."""
    sizes = survey.duplicates.sizes()
    if not sizes:
        return ReportSection("duplicates", "Duplicates", (Paragraph("No duplicate was removed."),))
    rows, low = [], 1
    for high in (*GROUP_SIZES, math.inf):
        found = {removed: groups for removed, groups in sizes.items() if low <= removed <= high}
        if found:
            name = f"{low} or more" if high == math.inf else str(low) if low == high else f"{low} to {high}"
            documents = sum(removed * groups for removed, groups in found.items())
            rows.append((name, count(sum(found.values())), count(documents)))
        low = int(high) + 1 if high < math.inf else 0
    columns = ("removed from a group", "groups", "documents removed")
    table = Table("Groups of duplicates, of which one document stays", columns, tuple(rows), columns[1:])
    return ReportSection("duplicates", "Duplicates", (table, _largest(survey.largest_groups())))


def _largest(groups: Sequence[Group]) -> Table:
    rows = tuple((group.kept, count(group.num_removed), "; ".join(group.members)) for group in groups)
    columns = ("document that stays", "removed", "the first of them")
    return Table("The largest groups", columns, rows, columns[1:2])


def edits_section(survey: Survey) -> ReportSection:
    """What steps changed in the texts, and what they found and left, personal data among it."""
    amounts, blocks = survey.breakdown, list[Block]()
    total = amounts.by(lambda cell: None).get(None)
    for what, columns in (("Edits by", survey.edits), ("Found and left by", survey.left)):
        for step, names in reversed(columns.items()):
            if total is not None and (found := [name for name in names if amounts.of_edits(name, total)[0]]):
                blocks += _edited(amounts, f"{what} {step.replace('_', ' ')}", found)
    nothing = Paragraph("No step changed a text.")
    return ReportSection("edits", "Personal data and other edits", tuple(blocks or [nothing]))


def _edited(amounts: Breakdown, what: str, names: Sequence[str]) -> Iterator[Table]:
    outcomes = amounts.by(lambda cell: NAMES.get(cell.outcome, "removed"))
    sources = amounts.by(lambda cell: cell.source)
    for caption, by in ((f"{what}: number (documents)", outcomes), (f"{what}, by source", sources)):
        rows = []
        for name in names:
            found = [amounts.of_edits(name, of) for of in by.values()]
            rows.append((name, *(f"{count(n)} ({count(documents)})" if n else "" for n, documents in found)))
        yield Table(caption, ("edit", *by), tuple(rows), tuple(by), folded=by is sources)


def contamination_section(stats: Mapping[str, Any], evidence: Mapping[Key, Evidence]) -> ReportSection:
    """What the model is tested on that was in the documents. `stats`: of the documents; `evidence`: by item."""
    explained = (
        "Documents that had passed every step before, and had too much text in common with a row of a task or with a "
        "held-out document; they were removed, or lost what they had in common. Too short to be compared: "
        f"{count(stats['items_too_short_to_compare'])} texts."
    )
    blocks: list[Block] = [Paragraph(explained)]
    if tasks := stats["contamination"]["tasks"]:
        blocks.append(contamination_table(tasks))
    else:
        blocks.append(Paragraph("The run names no evaluation rows."))
    blocks += [*hits_of_heldout(evidence), *hits_of_tasks(evidence)]
    return ReportSection("contamination", "Contamination", tuple(blocks))
