"""Stage `rows`: rows for SFT, preference tuning and evaluation, from docstrings and from the user's own files."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError, digest
from lifecycle.core.progress import Progress
from lifecycle.data.decontaminate import OverlapIndex, eval_items, texts_in
from lifecycle.data.docstrings import make_docstring_rows
from lifecycle.evals.rows import local_files
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatError, ChatTemplate
from lifecycle.text.interface import TokenizerError
from lifecycle.text.rows import EmptyAnswer, RowEncoder, RowError, read_rows, write_rows

FILES = ("sft-train", "sft-heldout", "preference-train", "preference-heldout")  # to which own rows are added


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    stats: dict[str, Any] = {}
    for name in FILES:  # a killed run may have left some; own rows would be added to them a second time
        (out / f"{name}.jsonl").unlink(missing_ok=True)
    if config.rows.docstrings:
        progress.note("reading docstrings")
        stats = make_docstring_rows(inputs["documents"].path, out, config.seed)
    tests = [file for files in local_files(config.evaluate).values() for file in files]
    index = OverlapIndex(eval_items(tests), config.data.decontamination.ngram)
    for name, files in (("sft", config.rows.sft), ("preference", config.rows.preference)):
        if files:
            rows = [row for file in files for row in _checked(name, file)]
            clean = [row for row in rows if _overlap(row, index) < config.data.decontamination.min_overlap]
            added = _add(name, clean, out, config.rows.heldout_fraction, config.seed)
            stats[f"own_{name}"] = {**added, "overlap_evaluation": len(rows) - len(clean)}
        if not (out / f"{name}-train.jsonl").is_file():
            raise ConfigError(f"rows: there are none for {name}; list files in rows.{name} or set rows.docstrings=true")
    return Outcome(stats)


def _overlap(row: dict[str, Any], index: OverlapIndex) -> float:
    """The largest share that any text of a row has in common with an evaluation row."""
    hits = (index.worst(index.match(text)) for text in texts_in(row))
    return max((hit.share for hit in hits if hit), default=0.0)


def _add(name: str, rows: list[dict[str, Any]], out: Path, heldout_fraction: float, seed: int) -> dict[str, int]:
    """Adds own rows to `<name>-train.jsonl` and `<name>-heldout.jsonl`, each to the same side in every run, but
    for the few rows of which chance would leave one side empty."""
    shares = [random.Random(f"{seed} {digest(row)}").random() for row in rows]
    low, high = min(shares, default=0.0), max(shares, default=0.0)
    split: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    for row, share in zip(rows, shares, strict=True):
        is_heldout = share < high and (share < heldout_fraction or share == low)  # of few rows, one on each side
        split["heldout" if is_heldout else "train"].append(row)
    for side, added in split.items():
        path = out / f"{name}-{side}.jsonl"
        before = [row for _, row in read_rows(path)] if path.is_file() else []
        write_rows(path, before + added)
    return {side: len(added) for side, added in split.items()}


def _checked(name: str, file: Path) -> Iterator[dict[str, Any]]:
    """A file's rows; what is wrong with one is told with the user's file and line, and before hours of pre-training."""
    encoder = RowEncoder(ChatTemplate(ByteTokenizer()))  # any tokenizer will do: columns, roles and types are looked at
    encode = encoder.encode_sft if name == "sft" else encoder.encode_preference
    for line, row in read_rows(file):
        try:
            encode(row)
        except EmptyAnswer:
            pass  # the training stage drops and lists it
        except (RowError, ChatError, TokenizerError) as error:
            raise RowError(f"{file}:{line}: {error}") from None
        yield row
