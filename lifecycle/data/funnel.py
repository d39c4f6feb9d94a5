"""The funnel: per step, how many documents and bytes went in and came out, why the others did not, and examples.

It is computed from the documents' own marks, so it cannot disagree with the Parquet files beside it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lifecycle.core.config import ConfigError
from lifecycle.data.documents import Document
from lifecycle.data.extract import Skipped

NUM_SAMPLES = 5  # per step, one for each reason first
SAMPLE_CHARS = 160

# Step -> what a user would change if it removes too much.
SETTING_OF_STEP = {
    "normalise": "data.sources",
    "language": "data.language.keep or data.language.min_score",
    "quality": "data.quality.min_words or data.quality.disable",
    "pii": "data.pii",
    "exact_duplicates": "data.sources",
    "near_duplicates": "data.dedup.jaccard",
    "heldout_split": "data.heldout_fraction",
    "decontamination": "data.decontamination.min_overlap",
}


def build_funnel(
    documents: Sequence[Document], skipped: Sequence[Skipped], files: int, file_bytes: int
) -> list[dict[str, Any]]:
    """One entry per step, in order; held-out documents leave at the split."""
    reasons = Counter(entry.reason for entry in skipped)
    samples = [
        {"source": s.source, "path": s.path, "reason": s.reason, "detail": s.detail} for s in skipped[:NUM_SAMPLES]
    ]
    sizes = [document.num_bytes for document in documents]
    steps: list[dict[str, Any]] = [{
        "step": "read", "files_in": files, "bytes_in": file_bytes,
        "documents_out": len(documents), "bytes_out": sum(sizes),
        "reasons": _sorted(reasons), "edits": {}, "samples": samples,
    }]  # fmt: skip
    alive = list(range(len(documents)))
    for step in SETTING_OF_STEP:
        gone = [at for at in alive if _leaves_at(step, documents[at])]
        left = [at for at in alive if not _leaves_at(step, documents[at])]
        steps.append({
            "step": step, "documents_in": len(alive), "bytes_in": sum(sizes[at] for at in alive),
            "documents_out": len(left), "bytes_out": sum(sizes[at] for at in left),
            "reasons": _sorted(Counter(documents[at].reason or "held_out" for at in gone)),
            "edits": _edits(step, [documents[at] for at in alive]),
            "samples": _samples([documents[at] for at in gone]),
        })  # fmt: skip
        alive = left
    return steps


def require_training_text(steps: Sequence[dict[str, Any]]) -> None:
    """Raises `ConfigError` if no document is left, telling which step removed how many and which setting to change."""
    if steps[-1]["documents_out"]:
        return
    read = steps[0]
    lines = [f"read: {read['documents_out']} documents from {read['files_in']} files{_counts(read['reasons'])}"]
    for step in steps[1:]:
        removed = step["documents_in"] - step["documents_out"]
        if removed:
            change = SETTING_OF_STEP[step["step"]]
            lines.append(f"{step['step']} took {removed}{_counts(step['reasons'])}: change {change}")
    raise ConfigError("no training document is left:\n" + "\n".join(f"  {line}" for line in lines))


def _leaves_at(step: str, document: Document) -> bool:
    return document.is_heldout if step == "heldout_split" else document.step == step


def _edits(step: str, documents: Sequence[Document]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for document in documents:
        if step == "normalise":
            total.update(document.edits)
        elif step == "pii":
            total.update({name: int(count) for name, count in document.scores.items() if name.startswith("pii_")})
    return _sorted(+total)


def _samples(gone: Sequence[Document]) -> list[dict[str, str]]:
    """The first document of each reason, then more in order."""
    first = {document.reason: document for document in reversed(gone)}
    chosen = [document for document in gone if first[document.reason] is document]
    chosen += [document for document in gone if first[document.reason] is not document]
    return [
        {
            "source": document.source, "path": document.path, "reason": document.reason or "held_out",
            "detail": document.detail or "", "text": document.text[:SAMPLE_CHARS],
        }
        for document in chosen[:NUM_SAMPLES]
    ]  # fmt: skip


def _counts(reasons: dict[str, int]) -> str:
    return f" ({', '.join(f'{reason} {count}' for reason, count in reasons.items())})" if reasons else ""


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
