"""The user's own rows: read, checked, freed of what must not be learned, and split.

| dropped                                  | which rows                                                                |
|------------------------------------------|---------------------------------------------------------------------------|
| from which nothing can be learned        | an empty answer, no answer, chosen equal to rejected                      |
| doubled                                  | all but the first of those with equal columns                             |
| contradictory                            | all pairs of one prompt in which each answer is chosen and rejected; all  |
|                                          | of one prompt and completion with both labels: none is known to be right  |
| overlaps an evaluation row               | those that share its n-grams, as in the documents' decontamination        |

What must hold: each dropped row is counted by its reason. Rows with one prompt are on one side of the held-out split,
in every run and for every kind of rows. A prompt that more than the held-out share of the rows have stays in training.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifecycle.core.config import digest
from lifecycle.core.fetched import local_file
from lifecycle.core.progress import Progress
from lifecycle.core.web_address import shown
from lifecycle.data.selecting.eval_items import texts_in
from lifecycle.data.selecting.overlap_index import OverlapIndex
from lifecycle.text.config import RowsConfig
from lifecycle.text.row_columns import KINDS, require_named
from lifecycle.text.row_encoder import Encoded, EncodedRow, RowEncoder, UnusableRow, apart
from lifecycle.text.row_files import RowData, RowError, read_rows
from lifecycle.text.rows import RowsReport, encode_row
from lifecycle.text.taught_rows import IGNORED

TRAIN, HELDOUT = SIDES = ("train", "heldout")
DOUBLED, CONTRADICTORY = "doubled", "contradictory"
OVERLAPPING = "overlaps an evaluation row"
SHOWN_EVERY = 1000  # rows
TOO_MANY = "correct the file, or raise rows.max_dropped"


@dataclass(frozen=True)
class OwnRow:
    """A row of the user's: where it is, its columns, and what those who read it said of it when it was encoded."""

    file: int
    line: int
    name: str
    columns: dict[str, Any]
    read: Any = None
    decoded: str | None = None  # the text of a row of tokens

    @property
    def texts(self) -> Iterator[str]:
        """All texts of the row."""
        return texts_in(self.columns if self.decoded is None else self.decoded)


def read_own(
    kind: str,
    settings: RowsConfig,
    encoder: RowEncoder,
    look: Callable[[Encoded], Any],
    names: dict[str, set[str]],
    progress: Progress,
) -> tuple[list[OwnRow], RowsReport]:
    """The rows of a kind from which something can be learned, each once; `look` sees each one encoded. `names` gets the
    columns of files that are read as `rows.ignore` and `rows.rename` say.

    Raises `RowError` for a broken row, an empty file, columns that nobody reads, and settings for columns that are not
    there.
    """
    report = RowsReport(f"rows.{kind}")
    rows: list[OwnRow] = []
    seen: dict[str, str] = {}  # by content, where it was first
    encode = encoder.encoding(kind)
    for number, file in enumerate(settings.of(kind)):
        before, place = report.rows, shown(file.path)
        columns, there = settings.columns(kind, file), set[str]()
        for line, row in read_rows(local_file(file.path)):
            report.rows += 1
            if report.rows % SHOWN_EVERY == 0:
                progress.update(report.rows)
            there |= row.keys()
            name = f"{place}:{line}"
            try:
                own = _placed(columns.read, row, name)
                read = _placed(look, encode_row(own, encode, name), name)
            except UnusableRow as reason:
                report.drop(name, str(reason))
                continue
            if (first := seen.setdefault(_content(own, name), name)) != name:
                report.drop(name, DOUBLED, f" (as {first})")
                continue
            rows.append(OwnRow(number, line, name, own, read, encoder.decoded(own)))
        if report.rows == before:
            raise RowError(f"{place}: it has no rows; correct rows.{kind}")
        for setting, known in names.items():
            given = getattr(file, setting)
            if given is None:
                known |= there
            else:
                require_named(given, there, f"rows.{kind}: {place}: {setting}")
    return rows, report


def _placed[T, R](function: Callable[[T], R], row: T, name: str) -> R:
    try:
        return function(row)
    except RowError as error:
        raise RowError(f"{name}: {error}") from None


def _content(row: RowData, name: str) -> str:
    try:
        deque(texts_in(row), maxlen=0)  # which the split and the comparison with evaluation rows will read
        return digest(row)
    except RecursionError:
        raise RowError(f"{name}: values within values, too deep to read; flatten them") from None
    except UnicodeEncodeError:  # in a column that no tokenizer has seen: what a reward function reads
        raise RowError(f"{name}: has a lone surrogate, which UTF-8 cannot encode; correct the row") from None


def require_alike(kind: str, rows: Sequence[OwnRow]) -> None:
    """Raises `RowError` if some rows have an optional column, which objectives use, and others do not."""
    for column in KINDS[kind].optional:
        having = [row for row in rows if column in row.columns]
        if having and (lacking := next((row for row in rows if column not in row.columns), None)):
            raise RowError(
                f"{lacking.name}: no {column}, and {having[0].name} has one; give one to all {kind} rows, or leave it "
                f"out with rows.ignore=[{column}]"
            )


def without_contradictions(kind: str, rows: Sequence[OwnRow], report: RowsReport) -> list[OwnRow]:
    """The rows without those that say the opposite of each other."""
    if kind not in ("pairs", "labelled"):
        return list(rows)
    said: dict[str, set[str]] = defaultdict(set)  # by what is judged, the judgements
    judged = [_judgement(kind, row.columns) for row in rows]
    for about, judgement in judged:
        said[about].add(judgement)
    kept = []
    for row, (about, _) in zip(rows, judged, strict=True):
        if len(said[about]) > 1:
            report.drop(row.name, CONTRADICTORY)
        else:
            kept.append(row)
    return kept


def _judgement(kind: str, row: RowData) -> tuple[str, str]:
    """(what is judged, the judgement): two answers and which is better, or an answer and whether it is good."""
    if kind == "labelled":
        return digest([row["prompt"], row["completion"]]), str(bool(row["label"]))
    prompt, chosen, rejected = apart(row)
    return digest([prompt, sorted([digest(chosen), digest(rejected)])]), digest(chosen)


def without_overlaps(
    rows: Sequence[OwnRow], index: OverlapIndex, min_overlap: float, report: RowsReport
) -> list[OwnRow]:
    """The rows without those of which a text overlaps an evaluation row."""
    kept = []
    for row in rows:
        hits = [hit for text in row.texts if (match := index.lookup.match(text)) and (hit := index.worst(match))]
        worst = max(hits, key=lambda hit: hit.share, default=None)
        if worst is not None and worst.share >= min_overlap:
            report.drop(row.name, OVERLAPPING, f" ({worst.item.name}, {worst.share:.0%})")
        else:
            kept.append(row)
    return kept


def split(rows: Sequence[OwnRow], heldout_fraction: float, seed: int) -> dict[str, list[OwnRow]]:
    """The rows by side. A prompt's side follows from its hash, but for prompts that too many rows have, and where
    chance would leave a side empty: then the prompt with the fewest rows is held out."""
    groups: dict[str, list[OwnRow]] = defaultdict(list)
    for row in rows:
        groups[asked(row.columns)].append(row)
    if len(groups) == 1:  # all ask the same: then the answers differ
        groups = {digest(row.columns): [row] for row in rows}
    shares = {group: random.Random(f"{seed} {group}").random() for group in groups}
    most = max(1.0, heldout_fraction * len(rows))
    small = [group for group in groups if len(groups[group]) <= most]
    heldout = {group for group in small if shares[group] < heldout_fraction}
    if not heldout and len(groups) > 1:
        heldout = {min(groups, key=lambda group: (len(groups[group]), shares[group]))}
    if len(heldout) == len(groups) and len(groups) > 1:
        heldout.remove(max(heldout, key=lambda group: (len(groups[group]), shares[group])))
    sides: dict[str, list[OwnRow]] = {side: [] for side in SIDES}
    for group, own in groups.items():
        sides[HELDOUT if group in heldout else TRAIN] += own
    return {side: sorted(own, key=lambda row: (row.file, row.line)) for side, own in sides.items()}


def asked(row: RowData) -> str:
    """A hash of a row's prompt, without regard to spaces and case; of what is no answer to anything, of all of it."""
    prompt = _prompt(row)
    texts = [" ".join(text.split()).casefold() for text in texts_in(prompt)]
    return digest(texts) if any(texts) else digest(row)


def _prompt(row: Mapping[str, Any]) -> Any:
    if "prompt" in row:
        said = row["prompt"]
    elif "messages" in row:
        roles = [message["role"] for message in row["messages"]]
        said = row["messages"][: roles.index("assistant") if "assistant" in roles else None]
    elif "chosen" in row:
        said = apart(row)[0]
    elif "input_ids" in row:
        learned = [label != IGNORED for label in row["labels"]]
        return " ".join(map(str, EncodedRow(row["input_ids"], learned).prompt_ids))
    else:
        return row["text"]
    # a string prompt and a conversation with that one message ask the same
    return [part["content"] for part in said if "content" in part] if isinstance(said, list) else said
