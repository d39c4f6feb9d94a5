"""The columns of rows, in TRL's words, by what the rows are for.

| kind       | columns                                                  | for                          |
|------------|----------------------------------------------------------|------------------------------|
| `chat`     | `messages`; `prompt, completion`; `text`                 | fine-tuning                  |
| `pairs`    | `prompt, chosen, rejected`; `chosen, rejected`; `margin` | preferences, reward models   |
| `labelled` | `prompt, completion, label`                              | answers, each good or bad    |
| `steps`    | `prompt, completions, labels`                            | steps of answers             |
| `prompts`  | `prompt`, and whatever the reward functions read         | reinforcement learning       |
| `taught`   | `input_ids, labels, teacher_ids, teacher_logprobs`       | a teacher's distributions    |

Rows of messages may also have `tools` and `chat_template_kwargs`, for the chat template. What must hold: no column is
passed over. One that nobody reads is an error with the mend: a run leaves it out, names it anew, or states from which
other layout its rows are converted (`text/row_conversions.py`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lifecycle.core.config import nearest
from lifecycle.text.row_conversions import CONVERSIONS, HINTS
from lifecycle.text.row_files import RowData, RowError

FOR_TEMPLATE = ("tools", "chat_template_kwargs")


@dataclass(frozen=True)
class RowKind:
    """A kind of rows: the forms in which it may come, by their columns, the first that a row has; then columns that any
    of them may have. `keeps_rest`: all others stay in the row, and are not refused."""

    forms: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    keeps_rest: bool = False


KINDS: Mapping[str, RowKind] = {
    "chat": RowKind((("messages",), ("prompt", "completion"), ("text",))),
    "pairs": RowKind((("prompt", "chosen", "rejected"), ("chosen", "rejected")), ("margin",)),
    "labelled": RowKind((("prompt", "completion", "label"),)),
    "steps": RowKind((("prompt", "completions", "labels"),)),
    "prompts": RowKind((("prompt",),), keeps_rest=True),
    "taught": RowKind((("input_ids", "labels", "teacher_ids", "teacher_logprobs"),)),
}


@dataclass(frozen=True)
class Columns:
    """How a file's columns become those of a kind of rows: some are left out, then some renamed, then all converted."""

    kind: str
    ignore: Collection[str] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    convert: str | None = None

    def read(self, row: RowData) -> dict[str, Any]:
        """The row with the kind's columns alone; raises `RowError` for one that nobody reads or that is missing."""
        own = {name: value for name, value in row.items() if name not in self.ignore}
        names = [self.rename.get(name, name) for name in own]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            theirs = [name for name in own if self.rename.get(name, name) == doubled]
            raise RowError(f"rename: {' and '.join(theirs)} would both be {doubled}; leave one out with ignore")
        own = dict(zip(names, own.values(), strict=True))
        if self.convert is not None:
            own = CONVERSIONS[self.convert](own)
        try:
            used = used_columns(self.kind, own)
        except RowError as error:
            left_out = [name for name in self.ignore if name in row]
            raise RowError(f"{error}{f'; ignore leaves out {", ".join(left_out)}' if left_out else ''}") from None
        if unused := [name for name in own if name not in used]:
            raise RowError(_unused_said(self, unused, used))
        return own


def used_columns(kind: str, row: RowData) -> tuple[str, ...]:
    """The columns of a row that its kind reads; raises `RowError` if it has none of the kind's forms."""
    known = KINDS[kind]
    form = next((form for form in known.forms if row.keys() >= {*form}), None)
    if form is None:
        raise RowError(f"columns {', '.join(row) or 'none'}; expected {_forms(kind)}{_hint(row)}")
    if known.keeps_rest:
        return tuple(row)
    template = FOR_TEMPLATE if any(is_messages(row[name]) for name in form) else ()
    return tuple(name for name in (*form, *known.optional, *template) if name in row)


def is_messages(value: Any) -> bool:
    """Whether a column's value is a conversation, not text or a list of texts."""
    return isinstance(value, list) and all(isinstance(part, Mapping) for part in value)


def require_named(columns: Collection[str], seen: Collection[str], setting: str) -> None:
    """Raises `RowError`, with the nearest name, for a column that a setting names and no row has."""
    for name in columns:
        if name not in seen:
            raise RowError(f"{setting}: no row has a column {name!r}{nearest(name, seen)}")


def _forms(kind: str) -> str:
    return ", or ".join(" and ".join(form) for form in KINDS[kind].forms)


def _hint(row: RowData) -> str:
    for convert, columns in HINTS.items():
        if row.keys() >= {*columns}:
            return f"; rows with {' and '.join(columns)} are read with rows.convert={convert}"
    return "; give columns these names with rows.rename={THEIRS: OURS}"


def _unused_said(columns: Columns, unused: Collection[str], used: Collection[str]) -> str:
    names, before = ", ".join(unused), {after: before for before, after in columns.rename.items()}
    ignored = ", ".join(before.get(name, name) for name in unused)
    convert = ""
    if columns.convert is None and (found := next((c for c, has in HINTS.items() if {*has} & {*unused}), None)):
        convert = f", or read them too with rows.convert={found}"
    what, it = ("column", "it") if len(unused) == 1 else ("columns", "them")
    return (
        f"{what} {names}: nobody reads {it} in {columns.kind} rows with {', '.join(used)}; leave {it} out with "
        f"rows.ignore=[{ignored}], or give {it} another name with rows.rename={{THEIRS: OURS}}{convert}"
    )
