"""The funnel: per step, the documents and bytes that went in and came out, reasons for removal, and examples.

It is computed from the same removals as the Parquet files, so the two cannot disagree.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from lifecycle.core.config import ConfigError
from lifecycle.data.decontaminate import STEP as DECONTAMINATION
from lifecycle.data.dedup import EXACT, NEAR
from lifecycle.data.documents import text_bytes
from lifecycle.data.selection import remaining
from lifecycle.data.steps import DocumentStep
from lifecycle.data.tagging import Reading

HELDOUT_SPLIT = "heldout_split"
NUM_SAMPLES = 5  # per step; one for each reason comes first
SAMPLE_CHARS = 160

# The steps that compare documents with each other, in their order -> the setting to change if one removes too much.
GLOBAL_STEPS = {
    EXACT: "data.sources",
    NEAR: "data.dedup.jaccard",
    HELDOUT_SPLIT: "data.heldout_fraction",
    DECONTAMINATION: "data.decontamination.min_overlap",
}


def build_funnel(
    documents: pa.Table, removed: pa.Table, heldout: pa.Table, reading: Reading, steps: Sequence[DocumentStep]
) -> list[dict[str, Any]]:
    """One entry per step, in order; held-out documents leave at the split.

    `documents`: all tagged ones; `removed`: the result of `removed_documents`; `heldout`: the split's held-out ones.
    Steps that neither remove nor edit documents have no entry.
    """
    edits = {step.name: step.edits for step in steps if step.rules or step.edits or step.settings}
    flow = documents.select(["ordinal", *(name for names in edits.values() for name in names)])
    flow = flow.append_column("bytes", pa.array(text_bytes(documents)))
    funnel = [_reading_entry(reading, flow)]
    for step in [*edits, *GLOBAL_STEPS]:
        gone = _held_out(heldout) if step == HELDOUT_SPLIT else removed.filter(removed["step"].to_numpy() == step)
        left = remaining(flow, gone)
        funnel.append({
            "step": step, "documents_in": len(flow), "bytes_in": _bytes(flow),
            "documents_out": len(left), "bytes_out": _bytes(left),
            "reasons": _sorted(Counter(gone["reason"].to_pylist())),
            "edits": _sorted(Counter({name: int(np.nansum(flow[name].to_numpy())) for name in edits.get(step, ())})),
            "samples": _samples(gone),
        })  # fmt: skip
        flow = left
    return funnel


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


def _reading_entry(reading: Reading, documents: pa.Table) -> dict[str, Any]:
    skipped = [asdict(entry) for entry in reading.skipped[:NUM_SAMPLES]]
    return {
        "step": "read", "files_in": reading.num_files, "bytes_in": reading.num_bytes,
        "documents_out": len(documents), "bytes_out": _bytes(documents),
        "reasons": _sorted(Counter(entry.reason for entry in reading.skipped)), "edits": {}, "samples": skipped,
    }  # fmt: skip


def _held_out(heldout: pa.Table) -> pa.Table:
    """Held-out documents with the columns of a removal that the funnel shows."""
    reasons = pa.array(["held_out"] * len(heldout), pa.string())
    details = pa.array([""] * len(heldout), pa.string())
    return heldout.append_column("reason", reasons).append_column("detail", details)


def _samples(gone: pa.Table) -> list[dict[str, str]]:
    """The first document of each reason, then more in order."""
    reasons = gone["reason"].to_pylist()
    firsts = sorted({reason: at for at, reason in reversed(list(enumerate(reasons)))}.values())
    chosen = firsts + [at for at in range(len(reasons)) if at not in set(firsts)]
    columns = gone.select(["source", "path", "reason", "detail", "text"])
    rows = (columns.slice(at, 1).to_pylist()[0] for at in chosen[:NUM_SAMPLES])
    return [row | {"text": row["text"][:SAMPLE_CHARS]} for row in rows]


def _bytes(flow: pa.Table) -> int:
    return int(flow["bytes"].to_numpy().sum())


def _counts(reasons: dict[str, int]) -> str:
    return f" ({', '.join(f'{reason} {count}' for reason, count in reasons.items())})" if reasons else ""


def _sorted(counts: Counter[str]) -> dict[str, int]:
    """The counts above zero, largest first."""
    return dict(sorted((+counts).items(), key=lambda entry: (-entry[1], entry[0])))
