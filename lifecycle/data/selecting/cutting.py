"""Steps that cut passages which other documents have, in this order: paragraphs, lines, longer runs of words.

A step finds what repeats in what the steps before it have left, and cuts it in documents that stay. One of which more
than `dedup.max_cut` would go is removed whole: what is left of it is no text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.progress import Progress
from lifecycle.core.step_costs import spending
from lifecycle.data.config import DedupConfig
from lifecycle.data.documents import pieces_of
from lifecycle.data.measures.steps import Failure
from lifecycle.data.selecting.cuts import CutFile, CutStretch, CutWriter, Spans, left_of
from lifecycle.data.selecting.document_text import DocumentText, read_texts
from lifecycle.data.selecting.repeated_substrings import Marks, RepeatedSubstrings, RunKeys
from lifecycle.data.selecting.repeated_units import RepeatedUnits, UnitKeys
from lifecycle.data.selecting.repeats import Part, find_repeats
from lifecycle.data.selecting.selection import REMOVALS, removals
from lifecycle.data.tagging.engine import Engine, ordered_results

PARAGRAPHS, LINES, SUBSTRINGS = "repeated_paragraphs", "repeated_lines", "repeated_substrings"  # the names of the steps

type SpansOf = Callable[[DocumentText], Spans]
type Judge = Callable[[DocumentText, Spans], Failure | None]  # by all that is cut of a document


def cutting_steps(config: DedupConfig) -> tuple[str, ...]:
    """The steps that are on."""
    settings = {PARAGRAPHS: config.paragraphs, LINES: config.lines, SUBSTRINGS: config.substrings}
    return tuple(step for step, value in settings.items() if value is not None)


def cut_repeats(
    stretches: Sequence[CutStretch], chosen: NDArray[np.bool_], config: DedupConfig, engine: Engine, folder: Path,
    progress: Progress,
) -> tuple[list[CutStretch], pa.Table]:  # fmt: skip
    """The stretches without what repeats in the chosen documents, and the removals of documents of which too much does.
    What the stretches read is in `folder`, which must outlive them."""
    cut, left, removed = list(stretches), chosen.copy(), [REMOVALS.empty_table()]
    for step in cutting_steps(config):
        with spending(step, cpu_seconds):
            pieces = pieces_of(cut, left)
            spans_of = _finder(step, pieces, config, folder / step, engine, progress)
            cut, failures = write_cuts(step, pieces, spans_of, MostlyCut(config.max_cut), folder, engine, progress)
        removed.append(removals(step, failures))
        left[removed[-1]["ordinal"].to_numpy()] = False
    return cut, pa.concat_tables(removed)


def _finder(
    step: str, pieces: Sequence[tuple[Part, ...]], config: DedupConfig, folder: Path, engine: Engine, progress: Progress
) -> SpansOf:
    if step == SUBSTRINGS:
        assert config.substrings is not None
        marks = find_repeats(
            pieces, Marks(config.substrings), 1, folder / "marks", engine, progress, "sampling passages"
        )
        runs = RunKeys(config.substrings, marks)
        found = find_repeats(pieces, runs, 1, folder / "runs", engine, progress, "comparing passages")
        return RepeatedSubstrings(runs, found)
    keys, most = (UnitKeys("lines"), config.lines) if step == LINES else (UnitKeys("paragraphs"), config.paragraphs)
    assert most is not None
    return RepeatedUnits(keys, find_repeats(pieces, keys, most, folder, engine, progress, f"comparing {keys.of}"))


@dataclass(frozen=True)
class MostlyCut:
    """Removes documents of which a larger share goes, or all words."""

    max_cut: float

    def __call__(self, text: DocumentText, spans: Spans) -> Failure | None:
        """The document's removal, if it is one."""
        left, _ = left_of(text.data.tobytes(), spans)
        share = 1 - len(left) / len(text.data)
        if share <= self.max_cut and left.strip():
            return None
        found = f"{share:.0%} of the text stands in documents before it (passages: {len(spans):,})"
        why = f"more than dedup.max_cut={self.max_cut:g}" if left.strip() else "nothing would stay"
        return Failure(text.ordinal, "mostly_repeated", f"{found}: {why}")


def write_cuts(
    step: str, pieces: Sequence[tuple[Part, ...]], spans_of: SpansOf, judge: Judge, folder: Path, engine: Engine,
    progress: Progress,
) -> tuple[list[CutStretch], list[Failure]]:  # fmt: skip
    """The stretches with the cuts of a step, and the documents that `judge` removes for all that is cut of them."""
    files = [folder / f"{step}-{number:05d}.arrow" for number in range(len(pieces))]
    work = [(parts, spans_of, judge, file) for parts, file in zip(pieces, files, strict=True)]
    failures = ordered_results(engine, _write_cuts, work, progress, step.replace("_", " "))
    cut = [
        stretch.after(CutFile(step, file, at))
        for parts, file in zip(pieces, files, strict=True)
        for at, (stretch, _) in enumerate(parts)
    ]
    return cut, [failure for own in failures for failure in own]


def _write_cuts(item: tuple[tuple[Part, ...], SpansOf, Judge, Path]) -> list[Failure]:
    """Writes the cuts of some stretches; in worker processes."""
    parts, spans_of, judge, path = item
    failures: list[Failure] = []
    with CutWriter(path) as writer:
        for texts in read_texts(parts):
            cuts: list[tuple[int, Spans]] = []
            for text in texts:
                spans = spans_of(text)
                if not len(spans):
                    continue
                cuts.append((text.ordinal, spans))
                failure = judge(text, np.concatenate([text.cut, spans]))
                failures += [] if failure is None else [failure]
            writer.write(cuts)
    return failures
