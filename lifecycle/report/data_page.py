"""The page on a run's documents: what was read, what became of it and why, with the scores, samples and costs behind.

It has every number that the artifacts record, and none that they do not.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from lifecycle.core.artifact import Artifact
from lifecycle.data.inspecting.breakdown import KINDS, Amounts, Breakdown, Cell
from lifecycle.data.inspecting.survey import Survey
from lifecycle.data.selecting.contamination import Evidence, Key
from lifecycle.data.selecting.funnel import HELDOUT_SPLIT
from lifecycle.ops.cost import PriceConfig
from lifecycle.report.blocks import Block, Headline, Paragraph, Report, ReportSection, Table, Tile
from lifecycle.report.data_page_costs import costs_section
from lifecycle.report.data_page_evidence import (
    contamination_section,
    duplicates_section,
    edits_section,
    reasons_section,
    samples_section,
    scores_section,
)
from lifecycle.report.data_section import funnel_drawing, funnel_table
from lifecycle.report.format import count, moment, share, size

LISTED = 20  # of the files and rows that were not read, for each reason
FOLDED, MOST = 30, 200  # rows of a table from which on it is folded, and of which the others are one row


@dataclass(frozen=True)
class DataRun:
    """What the page is made from. `funnel`: the content of `funnel.json`; `tokens`: None until they are made;
    `classifiers`: the manifests of those that the run uses, by name."""

    name: str
    tagging: Artifact
    documents: Artifact
    tokens: Artifact | None
    funnel: Mapping[str, Any]
    survey: Survey
    evidence: Mapping[Key, Evidence]
    classifiers: Mapping[str, Mapping[str, Any]]
    price: PriceConfig

    @property
    def steps(self) -> Sequence[Mapping[str, Any]]:
        """The steps of the funnel."""
        return self.funnel["steps"]


def build_data_page(run: DataRun) -> Report:
    """Builds the page."""
    lead = f"Documents of a run, selected at {moment(run.documents.manifest.created)} UTC."
    return Report(f"{run.name}: data", lead, tuple(_sections(run)))


def _sections(run: DataRun) -> Iterator[ReportSection]:
    amounts = run.survey.breakdown
    yield ReportSection("overview", "Overview", tuple(_overview(run)))
    yield ReportSection("funnel", "Funnel", tuple(_funnel(run)))
    removing = [name for name in (step["step"] for step in run.steps) if name in amounts.by(lambda cell: cell.outcome)]
    kinds = tuple(kinds_tables(amounts, removing, run.tokens is not None))
    yield ReportSection("kinds", "By source, license and language", kinds)
    yield reasons_section(run.survey)
    yield scores_section(run.survey, run.classifiers)
    yield samples_section(run.survey)
    yield duplicates_section(run.survey)
    yield edits_section(run.survey)
    yield contamination_section(run.documents.stats, run.evidence)
    yield ReportSection("unread", "Not read", tuple(_unread(run.funnel["skipped"])))
    yield costs_section(run.tagging, run.documents, run.tokens, run.steps[0], run.price)


def _funnel(run: DataRun) -> Iterator[Block]:
    yield funnel_drawing(run.steps)
    if run.tokens is None:
        yield funnel_table(run.steps)
        return
    yield funnel_table(run.steps, estimated_tokens(run.steps, run.survey.breakdown))
    yield Paragraph(
        "Removed documents are not tokenised: their tokens, here and below, are estimated from their bytes, by the "
        "tokens per byte of kept text of the same source; without such text, of all kept text."
    )


def estimated_tokens(steps: Sequence[Mapping[str, Any]], amounts: Breakdown) -> list[float]:
    """The tokens of the documents that are left after each step: those of the texts in the files, for as many bytes as
    the step counts, since others cut some of it later."""
    found, left = [], set(amounts.by(lambda cell: cell.outcome))
    tokens, sizes = amounts.tokens_by(lambda cell: cell.outcome), amounts.by(lambda cell: cell.outcome)
    for step in steps:
        left.discard("heldout" if step["step"] == HELDOUT_SPLIT else step["step"])
        num_bytes = sum(int(sizes[outcome][1]) for outcome in left)
        found.append(sum(tokens[outcome] for outcome in left) / max(1, num_bytes) * step["bytes_out"])
    return found


def _overview(run: DataRun) -> Iterator[Block]:
    read, amounts = run.steps[0], run.survey.breakdown
    tiles = [
        Tile("read", count(read["documents_out"]), f"documents, {size(read['bytes_out'])} of text"),
        *split_tiles(amounts, read["bytes_out"]),
        *cut_tile(run.steps),
        *(token_tiles(amounts) if run.tokens is not None else ()),
        Tile("not read", count(len(run.funnel["skipped"])), f"files and rows, of {count(read['files_in'])} files"),
    ]
    yield Headline(tuple(tiles))
    faults = list(faults_of(run.steps, amounts))
    yield from map(Paragraph, faults or ["Every document read is kept, held out or removed, at every step."])


def split_tiles(amounts: Breakdown, read_bytes: int) -> Iterator[Tile]:
    """How much was kept, held out and removed."""
    splits = amounts.by(_split)
    for split, name in (("kept", "kept"), ("heldout", "held out"), ("removed", "removed")):
        documents, num_bytes = splits[split][:2].tolist() if split in splits else (0, 0)
        of_text = share(num_bytes / max(1, read_bytes))
        yield Tile(name, count(documents), f"documents, {size(num_bytes)}, {of_text} of the text")


def token_tiles(amounts: Breakdown) -> Iterator[Tile]:
    """The tokens of this corpus, which may be one of several in the shards."""
    splits = amounts.by(_split)
    for split, name in (("kept", "train"), ("heldout", "heldout")):
        yield Tile(f"tokens, {name}", count(int(splits[split][2]) if split in splits else 0))


def cut_tile(steps: Sequence[Mapping[str, Any]]) -> Iterator[Tile]:
    """How much was cut as lines, and as passages out of documents that went on to the next step; nothing if no step
    cuts."""
    of_passages = [step["edits"] for step in steps if "passages_cut" in step["edits"]]
    if lost := sum(step["edits"].get("bytes_cut", 0) for step in steps if "passages_cut" not in step["edits"]):
        yield Tile("cut", size(lost), "of lines, out of all documents")
    if num := sum(edits["passages_cut"] for edits in of_passages):
        lost = sum(edits.get("bytes_cut", 0) for edits in of_passages)
        yield Tile("cut", count(num), f"passages, {size(lost)}, out of documents that went on")


def faults_of(steps: Sequence[Mapping[str, Any]], amounts: Breakdown) -> Iterator[str]:
    """What does not add up: between steps, or between the funnel and the documents that are there."""
    outcomes = {name: int(found[0]) for name, found in amounts.by(lambda cell: cell.outcome).items()}
    before = steps[0]["documents_out"]
    if before != sum(outcomes.values()):
        yield f"Warning: {count(before)} documents were read, {count(sum(outcomes.values()))} are in the files."
    for step in steps[1:]:
        removed = step["documents_in"] - step["documents_out"]
        there = outcomes.get("heldout" if step["step"] == HELDOUT_SPLIT else step["step"], 0)
        if step["documents_in"] != before or removed != there:
            yield (
                f"Warning: {count(before)} documents came to step {step['step']}; it counts "
                f"{count(step['documents_in'])}, and {count(removed)} that left: {count(there)} are in the files."
            )
        before = step["documents_out"]


def _split(cell: Cell) -> str:
    return cell.outcome if cell.outcome in ("kept", "heldout") else "removed"


def kinds_tables(amounts: Breakdown, steps: Sequence[str], has_tokens: bool) -> Iterator[Table]:
    """Documents by source, license and language, with a column for each of these steps."""
    columns = ("documents", "text", "kept", "text kept", "share kept", "held out")
    columns += ("tokens read (estimate)", "tokens kept and held out") if has_tokens else ()
    columns += tuple(f"by {step.replace('_', ' ')}" for step in steps)
    for at, kind in enumerate(KINDS):
        found: dict[str, dict[str, Amounts]] = {}
        for (name, outcome), of_outcome in amounts.by(lambda cell, at=at: (cell[at], cell.outcome)).items():
            found.setdefault(name or "none", {})[outcome] = of_outcome
        tokens = amounts.tokens_by(lambda cell, at=at: cell[at] or "none") if has_tokens else {}
        names = sorted(found, key=lambda name: (-sum(of[1] for of in found[name].values()), name))  # by bytes
        rows = [(name, *_of_kind(found[name], steps, tokens.get(name))) for name in names[:MOST]]
        if others := names[MOST:]:
            merged: dict[str, Amounts] = {}
            for outcome, of_outcome in chain.from_iterable(found[name].items() for name in others):
                merged[outcome] = merged.get(outcome, 0) + of_outcome
            of_others = sum(tokens[name] for name in others) if has_tokens else None
            rows.append((f"{count(len(others))} others", *_of_kind(merged, steps, of_others)))
        yield Table(f"Documents by {kind}", (kind, *columns), tuple(rows), columns, folded=len(rows) > FOLDED)


def _of_kind(outcomes: Mapping[str, Amounts], steps: Sequence[str], tokens_read: float | None) -> tuple[str, ...]:
    documents, num_bytes, tokens = np.sum([of_outcome[:3] for of_outcome in outcomes.values()], axis=0).tolist()
    kept, kept_bytes = outcomes["kept"][:2].tolist() if "kept" in outcomes else (0, 0)
    return (
        count(documents), size(num_bytes), count(kept), size(kept_bytes), share(kept_bytes / max(1, num_bytes)),
        count(outcomes["heldout"][0]) if "heldout" in outcomes else "",
        *(() if tokens_read is None else (count(tokens_read), count(tokens))),
        *(count(outcomes[step][0]) if step in outcomes else "" for step in steps),
    )  # fmt: skip


def _unread(skipped: Sequence[Mapping[str, str]]) -> Iterator[Block]:
    if not skipped:
        yield Paragraph("Every file and every row in them was read.")
        return
    counts = Counter((entry["reason"], entry["source"]) for entry in skipped)
    rows = tuple((reason, source, count(n)) for (reason, source), n in counts.most_common())
    yield Table("Files and rows that could not be used", ("reason", "source", "number"), rows, ("number",))
    drawn = sorted(skipped, key=lambda entry: hashlib.sha256(f"{entry['source']}:{entry['path']}".encode()).digest())
    for reason in dict.fromkeys(reason for (reason, _), _ in counts.most_common()):
        of_reason = [entry for entry in drawn if entry["reason"] == reason]
        rows = tuple((f"{entry['source']}:{entry['path']}", entry["detail"]) for entry in of_reason[:LISTED])
        caption = f"{reason}: {len(rows):,} of {len(of_reason):,}"
        yield Table(caption, ("file or row", "what is wrong"), rows, folded=True)
