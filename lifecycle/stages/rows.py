"""Stage `rows`: rows for SFT, preference tuning and evaluation, from docstrings and from the user's own files."""

import random
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError, digest
from lifecycle.core.progress import Progress
from lifecycle.data.docstrings import make_docstring_rows
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.text.rows import read_rows, write_rows


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    stats: dict[str, Any] = {}
    if config.rows.docstrings:
        progress.note("reading docstrings")
        stats = make_docstring_rows(inputs["documents"].path, out, config.seed)
    for name, files in (("sft", config.rows.sft), ("preference", config.rows.preference)):
        if files:
            stats[f"own_{name}"] = _add(name, files, out, config.rows.heldout_fraction, config.seed)
        if not (out / f"{name}-train.jsonl").is_file():
            raise ConfigError(f"rows: there are none for {name}; list files in rows.{name} or set rows.docstrings=true")
    return Outcome(stats)


def _add(name: str, files: tuple[Path, ...], out: Path, heldout_fraction: float, seed: int) -> dict[str, int]:
    """Adds own rows to `<name>-train.jsonl` and `<name>-heldout.jsonl`, each to the same side in every run."""
    rows = [row for file in files for _, row in read_rows(file)]
    split: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    for row in rows:
        share = random.Random(f"{seed} {digest(row)}").random()
        split["heldout" if share < heldout_fraction else "train"].append(row)
    for side, added in split.items():
        path = out / f"{name}-{side}.jsonl"
        before = [row for _, row in read_rows(path)] if path.is_file() else []
        write_rows(path, before + added)
    return {side: len(added) for side, added in split.items()}
