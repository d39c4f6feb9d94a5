"""The funnel: per step, the documents and bytes that went in and came out, reasons for removal, and examples.

It is computed from the same removals as the Parquet files, so the two cannot disagree.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from lifecycle.core.config import ConfigError
from lifecycle.data.documents import Split
from lifecycle.data.measures.steps import BYTES_CUT, DocumentStep
from lifecycle.data.selecting.cut_sizes import CutSizes
from lifecycle.data.selecting.cutting import LINES, PARAGRAPHS, SUBSTRINGS
from lifecycle.data.selecting.decontaminate import STEP as DECONTAMINATION
from lifecycle.data.selecting.dedup import ADDRESS, EXACT, NEAR
from lifecycle.data.selecting.selection import remaining
from lifecycle.data.tagging.tagging import Reading

HELDOUT_SPLIT = "heldout_split"
NUM_SAMPLES = 5  # per step; one for each reason comes first
SAMPLE_CHARS = 160

# The steps that compare documents with each other, in their order -> the setting to change if one removes too much.
GLOBAL_STEPS = {
    ADDRESS: "data.dedup.addresses",
    EXACT: "data.sources",
    NEAR: "data.dedup.jaccard",
    PARAGRAPHS: "data.dedup.paragraphs and max_cut",
    LINES: "data.dedup.lines and max_cut",
    SUBSTRINGS: "data.dedup.substrings and max_cut",
    HELDOUT_SPLIT: "data.heldout_fraction",
    DECONTAMINATION: "data.decontamination.min_overlap",
}
CUTTING = (PARAGRAPHS, LINES, SUBSTRINGS)
WITH_DAFT = (ADDRESS, EXACT, NEAR, *CUTTING)  # which group keys by it


_REPORT = "a fault of this program, please report it; nothing of this step is used"


class LostDocumentError(RuntimeError):
    """Documents are gone that no step has removed, or there twice."""


class Funnel:
    """Counts documents, batch by batch, through the steps. Steps that neither remove nor edit have no entry."""

    def __init__(self, steps: Sequence[DocumentStep], cutting: Collection[str] = ()) -> None:
        """`cutting`: the steps that are on of those that cut what repeats."""
        self._edits = {step.name: step.edits for step in steps if step.rules or step.edits or step.settings}
        self._entries = {name: _Entry() for name in (*self._edits, *_present(cutting))}

    def add(self, documents: pa.Table, removed: pa.Table, heldout: pa.Table, cuts: Mapping[str, CutSizes]) -> None:
        """Counts a batch of tagged documents; `removed`: the result of `removed_documents` for it; `heldout`: those of
        it that are held out, which leave at the split; `cuts`: what steps cut, by their names."""
        flow = documents.select(["ordinal", "text_bytes", *(name for names in self._edits.values() for name in names)])
        flow = _lengthened(flow, +1) if BYTES_CUT in flow.column_names else flow
        for name, entry in self._entries.items():
            gone = _held_out(heldout) if name == HELDOUT_SPLIT else removed.filter(removed["step"].to_numpy() == name)
            left = remaining(flow, gone)
            if name in cuts:
                left, edits = cuts[name].applied(left)
                entry.edits.update(edits)
            if BYTES_CUT in self._edits.get(name, ()):
                left = _lengthened(left, -1)
            entry.add(flow, left, gone, self._edits.get(name, ()))
            flow = left

    def join(self, other: "Funnel") -> None:
        """Counts the batches that another funnel of the same steps has counted, as those behind these."""
        for name, entry in self._entries.items():
            entry.join(other._entries[name])

    def entries(self, reading: Reading) -> list[dict[str, Any]]:
        """One entry per step, in order, after what was read."""
        steps = [{"step": name, **entry.shown()} for name, entry in self._entries.items()]
        skipped = [asdict(entry) for entry in reading.skipped[:NUM_SAMPLES]]
        return [
            {
                "step": "read", "files_in": reading.num_files, "bytes_in": reading.num_bytes,
                "documents_out": steps[0]["documents_in"], "bytes_out": steps[0]["bytes_in"],
                "reasons": _sorted(Counter(entry.reason for entry in reading.skipped)), "edits": {}, "samples": skipped,
            },
            *steps,
        ]  # fmt: skip


class _Entry:
    """What a step did to the documents that it has seen so far."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = dict.fromkeys(("documents_in", "bytes_in", "documents_out", "bytes_out"), 0)
        self.reasons, self.edits = Counter[str](), Counter[str]()
        self.firsts: dict[str, dict[str, str]] = {}  # reason -> its first document
        self.first: list[dict[str, str]] = []

    def add(self, flow: pa.Table, left: pa.Table, gone: pa.Table, edits: Sequence[str]) -> None:
        """Counts a batch: what came, what is left and what the step removed, and the columns that count its edits."""
        for side, documents in (("in", flow), ("out", left)):
            self.sizes[f"documents_{side}"] += len(documents)
            self.sizes[f"bytes_{side}"] += int(documents["text_bytes"].to_numpy().sum())
        self.edits.update({name: int(np.nansum(flow[name].to_numpy())) for name in edits})
        reasons = gone["reason"].to_pylist()
        self.reasons.update(reasons)
        for at, reason in enumerate(reasons):
            if len(self.first) == NUM_SAMPLES and reason in self.firsts:
                continue
            row = gone.select(["source", "path", "reason", "detail", "text"]).slice(at, 1).to_pylist()[0]
            sample = row | {"text": row["text"][:SAMPLE_CHARS]}
            self.firsts.setdefault(reason, sample)
            if len(self.first) < NUM_SAMPLES:
                self.first.append(sample)

    def join(self, other: "_Entry") -> None:
        """Counts what another entry of the step has counted behind this."""
        for side, count in other.sizes.items():
            self.sizes[side] += count
        self.reasons.update(other.reasons)
        self.edits.update(other.edits)
        self.firsts |= {reason: sample for reason, sample in other.firsts.items() if reason not in self.firsts}
        self.first = (self.first + other.first)[:NUM_SAMPLES]

    def shown(self) -> dict[str, Any]:
        """As the funnel has it; of the samples the first of each reason come first."""
        firsts = list(self.firsts.values())
        more = [sample for sample in self.first if all(sample is not first for first in firsts)]
        counts = {"reasons": _sorted(self.reasons), "edits": _sorted(self.edits)}
        return {**self.sizes, **counts, "samples": (firsts + more)[:NUM_SAMPLES]}


def require_every_document(
    funnel: Sequence[Mapping[str, Any]], num_tagged: int, sizes: Mapping[Split, Mapping[str, int]]
) -> None:
    """Raises `LostDocumentError` if a step's documents did not all go on or leave for a reason, or the files of the
    splits, of these sizes, have not each tagged document once."""
    flow = num_tagged
    for entry in funnel:
        came, went, left = entry.get("documents_in", flow), entry["documents_out"], sum(entry["reasons"].values())
        if came != flow or (entry["step"] != "read" and came - went != left):
            raise LostDocumentError(
                f"{flow:,} documents came to step {entry['step']}; it counts {came:,}, {went:,} that went on and "
                f"{left:,} that left for a reason: {_REPORT}"
            )
        flow = went
    written = {split: of_split["documents"] for split, of_split in sizes.items()}
    if flow != written["kept"] or sum(written.values()) != num_tagged:
        counts = ", ".join(f"{count:,} {split}" for split, count in written.items())
        raise LostDocumentError(f"{num_tagged:,} documents were tagged; {counts} are in the files: {_REPORT}")


def require_training_text(funnel: Sequence[dict[str, Any]], steps: Sequence[DocumentStep]) -> None:
    """Raises `ConfigError` if no document is left; the error says how many each step removed and what to change."""
    if funnel[-1]["documents_out"]:
        return
    settings = {step.name: step.settings for step in steps} | GLOBAL_STEPS
    read = funnel[0]
    lines = [f"read: {read['documents_out']} documents from {read['files_in']} files{_counts(read['reasons'])}"]
    for entry in funnel[1:]:
        removed = entry["documents_in"] - entry["documents_out"]
        if removed:
            lines.append(f"{entry['step']} took {removed}{_counts(entry['reasons'])}: change {settings[entry['step']]}")
    raise ConfigError("no training document is left:\n" + "\n".join(f"  {line}" for line in lines))


def _lengthened(flow: pa.Table, sign: int) -> pa.Table:
    """Documents with the size that they had before a map step cut their texts, or with -1 again behind it."""
    sizes = flow["text_bytes"].to_numpy() + sign * flow[BYTES_CUT].fill_null(0).to_numpy()
    return flow.set_column(flow.schema.get_field_index("text_bytes"), "text_bytes", pa.array(sizes))


def _present(cutting: Collection[str]) -> Iterator[str]:
    """The names of the steps that compare documents, less those that cut and are off."""
    return (name for name in GLOBAL_STEPS if name in cutting or name not in CUTTING)


def _held_out(heldout: pa.Table) -> pa.Table:
    """Held-out documents with the columns of a removal that the funnel shows."""
    reasons = pa.array(["held_out"] * len(heldout), pa.string())
    details = pa.array([""] * len(heldout), pa.string())
    return heldout.append_column("reason", reasons).append_column("detail", details)


def _counts(reasons: dict[str, int]) -> str:
    return f" ({', '.join(f'{reason} {count}' for reason, count in reasons.items())})" if reasons else ""


def _sorted(counts: Counter[str]) -> dict[str, int]:
    """The counts above zero, largest first."""
    return dict(sorted((+counts).items(), key=lambda entry: (-entry[1], entry[0])))
