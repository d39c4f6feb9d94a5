"""Stage `rows`: rows for training after pre-training, and evaluation rows: from docstrings, tasks that make prompts,
and the user's own files.

What must hold: whatever is wrong with the rows is said here, before hours of training: each is encoded with the run's
tokenizer and chat template, and fitted into the rows of every stage that will read it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

from lifecycle.core.artifact import READ_FROM
from lifecycle.core.progress import Progress
from lifecycle.core.web_address import shown
from lifecycle.data.docstrings import make_docstring_rows
from lifecycle.data.selecting.eval_items import task_items, texts_in
from lifecycle.data.selecting.overlap_index import OverlapIndex
from lifecycle.stages import keys
from lifecycle.stages.config import RunConfig
from lifecycle.stages.gym_rows import make_gym_rows
from lifecycle.stages.names import DOCUMENTS, by_corpus
from lifecycle.stages.own_rows import (
    HELDOUT,
    SIDES,
    TOO_MANY,
    TRAIN,
    OwnRow,
    read_own,
    require_alike,
    split,
    without_contradictions,
    without_overlaps,
)
from lifecycle.stages.row_origins import GENERATED, epoch_of, write_origins
from lifecycle.stages.row_readers import Reader, openings_of, readers_of
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.text.config import RowsConfig
from lifecycle.text.interface import Tokenizer
from lifecycle.text.row_columns import KINDS, require_named
from lifecycle.text.row_encoder import (
    Encoded,
    EncodedPrompt,
    RowEncoder,
    TemplateOnUse,
)
from lifecycle.text.row_files import RowData, RowError, read_rows, write_rows
from lifecycle.text.rows import EXAMPLES, RowsReport, encode_row
from lifecycle.text.rows import TOO_MANY as TOO_MANY_FOR_STAGE
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.config import TrainConfig
from lifecycle.training.packing import num_packed_rows
from lifecycle.training.wrapped_rows import num_wrapped_rows


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Writes rows by kind and side, with where they come from."""
    stats: dict[str, Any] = {}
    key = keys.rows(config)
    for kind, side in product(KINDS, SIDES):  # a killed run may have left files, and own rows would be added twice
        rows_file(out, kind, side).unlink(missing_ok=True)
    if config.rows.docstrings:
        progress.note("reading docstrings")
        stats = make_docstring_rows([of.path for of in by_corpus(DOCUMENTS, inputs).values()], out, config.seed)
    if config.rows.reasoning_gym:
        progress.start("rows.reasoning_gym")
        sides, reports = make_gym_rows(config.rows, progress)
        for side in SIDES:
            write_rows(rows_file(out, "prompts", side), sides[side])
        for report in reports:
            _note(report, progress)
        stats["reasoning_gym"] = [
            {"task": task.task, "heldout": task.held_out} | report.plain()
            for task, report in zip(config.rows.reasoning_gym, reports, strict=True)
        ]
    tokenizer = load_tokenizer(inputs["tokenizer"].path)
    encoder = row_encoder(config.rows, inputs, tokenizer)
    index = OverlapIndex(task_items(keys.evaluation_files(config)), config.decontamination.ngram)
    names: dict[str, set[str]] = {"ignore": set(), "rename": set()}
    readers = {kind: readers_of(config, kind, inputs, tokenizer) for kind in KINDS}
    made = {kind: _Made.of(kind, readers[kind], encoder, out) for kind in KINDS}
    for kind in KINDS:
        if config.rows.of(kind):
            progress.start(f"rows.{kind}")
            report = made[kind].add_own(config, encoder, index, names, progress)
            _note(report, progress)
            _note_names(kind, made[kind], config, tokenizer, progress)
            own = {"train": len(made[kind].own[TRAIN]), "heldout": len(made[kind].own[HELDOUT])}
            files = [shown(file.path) for file in config.rows.of(kind)]
            weights = [file.weight for file in config.rows.of(kind) if file.weight is not None]
            stats.setdefault("own", {})[kind] = report.plain() | own | {"files": files, "weights": weights}
            stats[READ_FROM] = [*stats.get(READ_FROM, []), *files]
    if stats.get("own"):
        for setting, known in names.items():
            require_named(getattr(config.rows, setting), known, f"rows.{setting}")
    for kind in KINDS:
        made[kind].check(config, stats, progress)
        made[kind].write(out)
        for reader in readers[kind]:
            reader.close()
    if keys.rows(config) != key:
        raise RowError("a file of rows, or of evaluation rows, changed while it was read; run again")
    return Outcome(stats)


def rows_file(folder: Path, kind: str, side: str) -> Path:
    """The file of the artifact with the rows of a kind and a side."""
    return folder / f"{kind}-{side}.jsonl"


def epoch_rows(train: TrainConfig, lengths: Sequence[int]) -> float:
    """How many rows of a stage's batches an epoch of its own rows has, which have these lengths."""
    rows = (num_wrapped_rows if train.wraps else num_packed_rows)(lengths, train.seq_len)
    return train.epoch_rows(len(lengths), rows)


def row_encoder(settings: RowsConfig, inputs: Inputs, tokenizer: Tokenizer) -> RowEncoder:
    """The encoder of the run's rows."""
    return RowEncoder(TemplateOnUse(inputs["tokenizer"].path, tokenizer), settings.special_tokens)


@contextmanager
def stage_encoding(
    kind: str, train: TrainConfig, settings: RowsConfig, inputs: Inputs, tokenizer: Tokenizer
) -> Generator[Callable[[RowData], Encoded]]:
    """The function by which a stage encodes rows of a kind: those of episodes as its environment begins them."""
    encode = row_encoder(settings, inputs, tokenizer).encoding(kind)
    openings = openings_of(train, inputs, tokenizer)
    if openings is None:
        yield encode
        return
    try:
        yield lambda row: openings(cast(EncodedPrompt, encode(row)))
    finally:
        openings.close()


@dataclass
class _Made:
    """The rows of a kind by side: generated ones, and the user's own, with what each of its readers makes of them."""

    kind: str
    readers: Sequence[Reader]
    generated: dict[str, list[OwnRow]]
    own: dict[str, list[OwnRow]]

    @classmethod
    def of(cls, kind: str, readers: Sequence[Reader], encoder: RowEncoder, out: Path) -> "_Made":
        """Those that no file of the user's has."""
        made = cls(kind, readers, {}, {})
        encode = encoder.encoding(kind)
        for side in SIDES:
            path = rows_file(out, kind, side)
            rows = list(read_rows(path)) if path.is_file() else []
            made.generated[side] = [
                OwnRow(
                    GENERATED,
                    line,
                    (name := f"{path.name}:{line}"),
                    row,
                    made.look(encode_row(row, encode, name)) if made.readers else (),
                )
                for line, row in rows
            ]
            made.own[side] = []
        return made

    def look(self, encoded: Encoded) -> tuple[int | str, ...]:
        """What each reader makes of a row."""
        return tuple(reader.look(encoded) for reader in self.readers)

    def add_own(
        self,
        config: RunConfig,
        encoder: RowEncoder,
        index: OverlapIndex,
        names: dict[str, set[str]],
        progress: Progress,
    ) -> RowsReport:
        """Adds the user's own rows, and returns what became of them."""
        rows, report = read_own(self.kind, config.rows, encoder, self.look, names, progress)
        rows = without_contradictions(self.kind, rows, report)
        rows = without_overlaps(rows, index, config.decontamination.min_overlap, report)
        require_alike(self.kind, [*rows, *self.generated[TRAIN]])
        for row in rows:
            report.keep(row.name)
        report.require(config.rows.max_dropped, TOO_MANY)
        self.own = split(rows, config.rows.heldout_fraction, config.seed)
        if lacking := next((side for side in SIDES if not self.generated[side] + self.own[side]), None):
            raise RowError(
                f"rows.{self.kind}: {len(rows)} row is left, and none for the {lacking} side: one at least is held "
                f"out and one learned; add rows ({report.said})"
            )
        return report

    def rows(self, side: str) -> list[OwnRow]:
        """All rows of a side, in the order of the artifact's file."""
        return self.generated[side] + self.own[side]

    def check(self, config: RunConfig, stats: dict[str, Any], progress: Progress) -> None:
        """Raises `RowError` or `ConfigError` for what a reader would raise when its turn comes."""
        if self.kind == "pairs":
            self._check_margin(progress)
        if self.kind == "labelled":
            self._note_labels(progress)
        for number, reader in enumerate(self.readers):
            for side in SIDES if self.rows(TRAIN) else ():
                report = RowsReport(f"train.{reader.stage}, {side} rows of rows.{self.kind}")
                for row in self.rows(side):
                    report.rows += 1
                    found = row.read[number]
                    if isinstance(found, str):
                        report.drop(row.name, found)
                    else:
                        report.keep(row.name)
                report.require(config.rows.max_dropped if side == TRAIN else 1, TOO_MANY_FOR_STAGE)
                _note(report, progress)
            reader.require_prompts(config.rows.max_dropped)
            if self.rows(TRAIN):
                stats.setdefault("epoch_rows", {})[reader.stage] = self._epoch_rows(config, number)

    def _check_margin(self, progress: Progress) -> None:
        """Of the stages that read pairs, one at least reads the margins that they have; others are told of."""
        blind = [reader for reader in self.readers if not reader.train.reads_margin]
        if not blind or not any("margin" in row.columns for row in self.rows(TRAIN)):
            return
        stages = ", ".join(f"train.{reader.stage} ({reader.train.objective})" for reader in blind)
        if len(blind) == len(self.readers):
            raise RowError(
                f"rows.{self.kind} have a margin, and nobody reads it: {stages}; set rows.ignore=[margin], or train a "
                "reward_model"
            )
        progress.note(f"rows.{self.kind}: the margin is not read by {stages}")

    def _note_labels(self, progress: Progress) -> None:
        """Says that all answers to train on are good, or all bad."""
        labels = {bool(row.columns["label"]) for row in self.rows(TRAIN)}
        if len(labels) == 1:
            progress.note(
                f"rows.{self.kind}: all {len(self.rows(TRAIN)):,} training rows have label {str(*labels).lower()}, so "
                "there is nothing to compare; is the column right?"
            )

    def _epoch_rows(self, config: RunConfig, number: int) -> float:
        """How many rows of its batches an epoch of a reader has; its settings are checked with that."""
        kept = [row for row in self.rows(TRAIN) if isinstance(row.read[number], int)]
        weights = [file.weight for file in config.rows.of(self.kind) if file.weight is not None]
        lengths = [kept[at].read[number] for at in epoch_of([row.file for row in kept], weights, self.kind)]
        train = self.readers[number].train
        rows = epoch_rows(train, lengths)
        train.resolved(rows)
        return rows

    def write(self, out: Path) -> None:
        """Writes the rows, if there are any."""
        for side in SIDES if self.rows(TRAIN) + self.rows(HELDOUT) else ():
            path = rows_file(out, self.kind, side)
            write_rows(path, [row.columns for row in self.rows(side)])
            write_origins(path, [(row.file, row.line) for row in self.rows(side)])


def _note(report: RowsReport, progress: Progress) -> None:
    """Says what was dropped, with the first examples."""
    if report.dropped:
        progress.note(f"{report.path}: {report.said}")
        for example in report.examples[:EXAMPLES]:
            progress.note(f"  {example}")


def _note_names(kind: str, made: _Made, config: RunConfig, tokenizer: Tokenizer, progress: Progress) -> None:
    """Says how many rows of text have names of special tokens, which are plain text in them."""
    if config.rows.special_tokens:
        return
    found = [
        row
        for side in SIDES
        for row in made.own[side]
        if all(isinstance(value, str) for value in row.columns.values())
        and any(tokenizer.special_pattern.search(text) for text in texts_in(row.columns))
    ]
    if found:
        progress.note(
            f"rows.{kind}: {len(found):,} rows of text have names of special tokens, first {found[0].name}: they are "
            "learned as plain text; with rows.special_tokens=true they are these tokens"
        )
