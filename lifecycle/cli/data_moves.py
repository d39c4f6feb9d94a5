"""What `lifecycle data diff` prints of a comparison: for people, or as JSON for programs."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lifecycle.cli.data_rows import excerpt
from lifecycle.cli.display import in_line
from lifecycle.data.documents import SPLITS
from lifecycle.data.inspecting.comparison import Amount, Comparison, Fate, Move, Moved, Side
from lifecycle.data.inspecting.samples import Sample
from lifecycle.report.format import count, size

SHOWN_CHARS = 300  # of a sample's text, or a passage's
SHOWN_PASSAGES = 5  # of a document, that one side alone cuts
NAMES = {"kept": "kept", "heldout": "held out", "removed": "removed", None: "not there"}
SUMS: Mapping[str, Callable[[Moved], bool]] = {
    "unchanged": lambda moved: not moved.has_changed,
    "entered": lambda moved: moved.has_entered,
    "left": lambda moved: moved.has_left,
}

type Folders = Mapping[Side, Path]


def as_tree(compared: Comparison, folders: Folders) -> dict[str, Any]:
    """The comparison, JSON-ready."""
    splits = {side: {split: _amount(of) for split, of in _splits(compared, side).items()} for side in folders}
    moves = [
        {
            "from": before._asdict(), "to": after._asdict(), **_amount(amount),
            "samples": [_sample(sample) for sample in compared.samples.get((before, after), ())],
        }
        for (before, after), amount in _moves(compared).items()
    ]  # fmt: skip
    return {
        **{side: {"folder": str(folder), **splits[side]} for side, folder in folders.items()},
        **{name: _amount(compared.total(is_counted)) for name, is_counted in SUMS.items()},
        "sources": {name: {what: _amount(of) for what, of in own.items()} for name, own in _sources(compared).items()},
        "moves": moves,
        "cut_differently": {
            "sources": {
                name: {side: _amount(of) for side, of in zip(folders, own, strict=True)}
                for name, own in compared.recut.items()
            },
            "samples": [asdict(sample) for sample in compared.recut_samples],
        },
    }


def show(console: Console, compared: Comparison, folders: Folders) -> None:
    """Prints the comparison."""
    for side, folder in folders.items():
        held = (f"{NAMES[split]} {_said(of)}" for split, of in _splits(compared, side).items())
        console.print(f"{side.upper()}  {folder}: {', '.join(held)}", markup=False, highlight=False, soft_wrap=True)
    for name, is_counted in SUMS.items():
        what = name if name == "unchanged" else f"{name} the kept documents"
        console.print(f"{what}: {_said(compared.total(is_counted))}", markup=False, highlight=False)
    if compared.recut:
        a, b = (sum(of, Amount()) for of in zip(*compared.recut.values(), strict=True))
        line = (
            f"of the unchanged ones cut differently: {count(a.documents)} ({size(a.bytes)} in A, {size(b.bytes)} in B)"
        )
        console.print(line, markup=False, highlight=False)
    if moves := _moves(compared):
        console.print(_moves_table(moves), _sources_table(compared))
    for (before, after), samples in compared.samples.items():
        title = f"{_named(before)} -> {_named(after)}: {len(samples)} of {count(moves[before, after].documents)}"
        console.print(f"\n{in_line(title)}", style="bold", markup=False, highlight=False, soft_wrap=True)
        for sample in samples:
            detail = f"\n    {in_line(sample.detail)}" if sample.detail else ""
            console.out(f"{in_line(sample.name)}  {sample.id}{detail}", highlight=False)
            console.out(excerpt(sample.text, SHOWN_CHARS, sample.size), highlight=False)
    _show_recut(console, compared)


def _show_recut(console: Console, compared: Comparison) -> None:
    if compared.recut_samples:
        of = sum(amount.documents for amount, _ in compared.recut.values())
        title = f"cut differently: {len(compared.recut_samples)} of {count(of)}"
        console.print(f"\n{title}", style="bold", markup=False, highlight=False)
    for sample in compared.recut_samples:
        console.out(f"{in_line(sample.name)}  {sample.id}", highlight=False)
        for side, passages in (("A", sample.only_a), ("B", sample.only_b)):
            for passage in passages[:SHOWN_PASSAGES]:
                where = f"only {side} cuts, by {passage.step}, characters {passage.begin:,} to {passage.end:,}"
                more = "..." if len(passage.text) > SHOWN_CHARS else ""
                console.out(f"    {where}: {in_line(passage.text[:SHOWN_CHARS])}{more}", highlight=False)
            if (more := len(passages) - SHOWN_PASSAGES) > 0:
                console.out(f"    and {more:,} more", highlight=False)


def _moves(compared: Comparison) -> dict[Move, Amount]:
    return compared.by(lambda moved: moved.move if moved.has_changed else None)


def _splits(compared: Comparison, side: Side) -> dict[str, Amount]:
    found = compared.by(lambda moved: (moved.before if side == "a" else moved.after).split)
    return {split: found.get(split, Amount()) for split in SPLITS}


def _sources(compared: Comparison) -> dict[str, dict[str, Amount]]:
    """What entered and left the kept documents, by source."""
    found = {
        "entered": compared.by(lambda moved: moved.source if moved.has_entered else None),
        "left": compared.by(lambda moved: moved.source if moved.has_left else None),
    }
    names = compared.by(lambda moved: moved.source if moved.has_entered or moved.has_left else None)
    return {name: {what: of.get(name, Amount()) for what, of in found.items()} for name in names}


def _moves_table(moves: Mapping[Move, Amount]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("in A", overflow="fold")
    table.add_column("in B", overflow="fold")
    for column in ("documents", "text"):
        table.add_column(column, justify="right")
    for (before, after), amount in moves.items():
        named = (escape(in_line(_named(fate))) for fate in (before, after))
        table.add_row(*named, count(amount.documents), size(amount.bytes))
    return table


def _sources_table(compared: Comparison) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("source", overflow="fold")
    for column in ("entered", "text", "left", "text"):
        table.add_column(column, justify="right")
    for name, of in _sources(compared).items():
        amounts = (text for amount in of.values() for text in (count(amount.documents), size(amount.bytes)))
        table.add_row(escape(in_line(name)), *amounts)
    return table


def _named(fate: Fate) -> str:
    return f"removed by {fate.step}: {fate.reason}" if fate.step else NAMES[fate.split]


def _said(amount: Amount) -> str:
    return f"{count(amount.documents)} ({size(amount.bytes)})"


def _amount(amount: Amount) -> dict[str, int]:
    return {"documents": amount.documents, "bytes": amount.bytes}


def _sample(sample: Sample) -> dict[str, Any]:
    return {"id": sample.id, "document": sample.name, "detail": sample.detail, "text": sample.text}
