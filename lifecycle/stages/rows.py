"""Stage `rows`: chat rows, preference pairs and evaluation rows, from docstrings and from the user's own files."""

import random
from itertools import product
from pathlib import Path
from typing import Any

from lifecycle.core.artifact import READ_FROM
from lifecycle.core.config import digest
from lifecycle.core.fetched import local_file
from lifecycle.core.progress import Progress
from lifecycle.core.web_address import shown
from lifecycle.data.decontaminate import OverlapIndex, eval_items, texts_in
from lifecycle.data.docstrings import make_docstring_rows
from lifecycle.stages import keys
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatError, ChatTemplate
from lifecycle.text.interface import TokenizerError
from lifecycle.text.rows import RowEncoder, RowError, UnusableRow, read_rows, write_rows

KINDS, SIDES = ("chat", "pairs"), ("train", "heldout")  # own rows are added to `<kind>-<side>.jsonl`


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Writes rows by kind and side; the user's rows that overlap an evaluation row are left out."""
    stats: dict[str, Any] = {}
    for kind, side in product(KINDS, SIDES):  # a killed run may have left files, and own rows would be added twice
        (out / f"{kind}-{side}.jsonl").unlink(missing_ok=True)
    if config.rows.docstrings:
        progress.note("reading docstrings")
        stats = make_docstring_rows(inputs["documents"].path, out, config.seed)
    index = OverlapIndex(eval_items(keys.evaluation_files(config)), config.decontamination.ngram)
    for kind in KINDS:
        if files := getattr(config.rows, kind):
            rows = [row for file in files for row in _checked(kind, local_file(file), progress)]
            clean = [row for row in rows if _overlap(row, index) < config.decontamination.min_overlap]
            added = _add(kind, clean, out, config.rows.heldout_fraction, config.seed)
            stats[f"own_{kind}"] = {**added, "overlap_evaluation": len(rows) - len(clean)}
            stats[READ_FROM] = [*stats.get(READ_FROM, []), *map(shown, files)]
    return Outcome(stats)


def _overlap(row: dict[str, Any], index: OverlapIndex) -> float:
    """The largest overlap of any text in the row with an evaluation row."""
    hits = (index.worst(index.match(text)) for text in texts_in(row))
    return max((hit.share for hit in hits if hit), default=0.0)


def _add(kind: str, rows: list[dict[str, Any]], out: Path, heldout_fraction: float, seed: int) -> dict[str, int]:
    """Adds the user's rows to `<kind>-train.jsonl` and `<kind>-heldout.jsonl`, each to the same side in every run,
    except for rows moved to a side that chance left empty."""
    shares = [random.Random(f"{seed} {digest(row)}").random() for row in rows]
    low, high = min(shares, default=0.0), max(shares, default=0.0)
    split: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    for row, share in zip(rows, shares, strict=True):
        is_heldout = share < high and (share < heldout_fraction or share == low)  # so that neither side is empty
        split["heldout" if is_heldout else "train"].append(row)
    for side, added in split.items():
        path = out / f"{kind}-{side}.jsonl"
        before = [row for _, row in read_rows(path)] if path.is_file() else []
        write_rows(path, before + added)
    return {side: len(added) for side, added in split.items()}


def _checked(kind: str, file: Path, progress: Progress) -> list[dict[str, Any]]:
    """A file's rows, checked before hours of training; an error names the user's file and line.

    Rows without anything to learn are noted here and dropped by the training stage; a file of nothing else, or of one
    row many times, is an error.
    """
    encoder = RowEncoder(ChatTemplate(ByteTokenizer()))  # any tokenizer: only columns, roles and types are checked
    encode = encoder.encode_sft if kind == "chat" else encoder.encode_preference
    rows: list[dict[str, Any]] = []
    useless: list[str] = []
    for line, row in read_rows(file):
        try:
            encode(row)
        except UnusableRow as reason:
            useless.append(f"{file}:{line}: {reason}")
        except (RowError, ChatError, TokenizerError) as error:
            raise RowError(f"{file}:{line}: {error}") from None
        rows.append(row)
    if not rows:
        raise RowError(f"{file}: it has no rows; correct rows.{kind}")
    if len(useless) == len(rows):
        raise RowError(f"{file}: nothing can be learned from any of {len(rows)} rows; first: {useless[0]}")
    if len(rows) > 1 and all(row == rows[0] for row in rows):
        raise RowError(f"{file}: its {len(rows)} rows are all equal; correct the file, or keep one of them")
    if useless:
        progress.note(f"nothing can be learned from {len(useless)} of {len(rows)} rows; first: {useless[0]}")
    return rows
