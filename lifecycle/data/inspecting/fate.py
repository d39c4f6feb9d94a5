"""A document's fate: what each step of the pipeline measured of it and did to it, from the selected documents."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.data.config import DedupConfig
from lifecycle.data.documents import SPLITS, Split
from lifecycle.data.inspecting.origins import find_holders
from lifecycle.data.inspecting.selected import read_where
from lifecycle.data.measures.rights import address_hashes
from lifecycle.data.measures.scripts import UNDETERMINED
from lifecycle.data.measures.steps import DocumentStep, Limit
from lifecycle.data.personal.places import masked_places
from lifecycle.data.reading.raw import Skipped
from lifecycle.data.selecting.funnel import CUTTING, GLOBAL_STEPS, HELDOUT_SPLIT

MOST = 20  # documents that a name may find
SHOWN, SHOWN_CHARS = 10, 200  # cuts by a step, and of the text of each
_ID, _HASH = re.compile(r"[0-9a-f]{6,32}"), re.compile(r"[0-9a-f]{32}")
_NAMES = ("id", "source", "path")


@dataclass(frozen=True)
class Fate:
    """A document with all its columns, and where it is: in `kept`, `heldout` or `removed`."""

    split: Split
    row: dict[str, Any]


@dataclass(frozen=True)
class Passage:
    """What a step measured of a document, what it edited in it, and why it removed it, if it did."""

    step: str
    measured: tuple[str, ...]
    reasons: tuple[str, ...]


def find_documents(folder: Path, name: str) -> list[Fate]:
    """The documents of an artifact of stage `documents` with this id, a beginning of it of six digits or more, hash of
    its content, address, path or `source:path`; `MOST` at most. Reads the texts only of row groups that have one."""
    reads = (*_NAMES, *_hashes_of(name))
    found = (
        Fate(split, row) for split in SPLITS for row in read_where(folder, split, reads, partial(_is_named, name=name))
    )
    return list(islice(found, MOST))


def with_holders(folder: Path, fates: Sequence[Fate], config: DedupConfig) -> list[Fate]:
    """The documents with `stays_in` in each of their `cuts`: the first document that still has that passage, or None;
    `config` has the settings by which the artifact was made."""
    holders = find_holders(folder, [cut for fate in fates for cut in fate.row["cuts"] or ()], config)

    def cuts_of(fate: Fate) -> list[dict[str, Any]]:
        return [cut | {"stays_in": holders.of(cut)} for cut in fate.row["cuts"] or ()]

    return [replace(fate, row=fate.row | {"cuts": cuts_of(fate)}) for fate in fates]


def _is_named(rows: pa.RecordBatch, first: int, name: str) -> NDArray[np.bool_]:
    del first
    source, _, path = name.partition(":")
    ids, sources, paths = (rows[column].to_numpy(zero_copy_only=False) for column in _NAMES)
    flags = np.isin(paths, _spellings(name)) | ((sources == source) & np.isin(paths, _spellings(path)))
    if _ID.fullmatch(name):
        flags |= np.strings.startswith(ids.astype(str), name)
    for column, hashes in _hashes_of(name).items():
        flags |= np.isin(rows[column].to_numpy(zero_copy_only=False), hashes)
    return flags


@cache  # asked for each batch of documents, as the next is
def _spellings(path: str) -> tuple[str, ...]:
    """A path as it was, and as it is once it is masked."""
    return path, *(masked.text for masked in masked_places("path", [path], [UNDETERMINED]).values())


@cache
def _hashes_of(name: str) -> dict[str, NDArray[np.object_]]:
    """The hashes that a name stands for, by their column."""
    found: dict[str, list[bytes]] = {}
    if _HASH.fullmatch(name):
        found["content"] = [bytes.fromhex(name)]
    elif "://" in name:
        found["address"] = [*address_hashes([name])]
    return {column: np.array(hashes, object) for column, hashes in found.items()}  # as bytes, zeros at ends were lost


def unread(skipped: Sequence[Skipped], name: str) -> list[Skipped]:
    """The files and rows with this path, or `source:path`, that could not be used."""
    return [entry for entry in skipped if name in (entry.path, f"{entry.source}:{entry.path}")][:MOST]


def passages(fate: Fate, steps: Sequence[DocumentStep]) -> Iterator[Passage]:
    """What happened to a document, step by step, up to the one that removed it. Rules over columns all see it; the
    steps that compare documents only if no rule removes it."""
    reasons: dict[str, list[str]] = {}
    for entry in fate.row["reasons"] or ():
        reasons.setdefault(entry["step"], []).append(f"{entry['reason']}: {entry['detail']}")
    for step in steps:
        measured = (*_edits(fate.row, step), *_measures(fate.row, step))
        if measured or step.name in reasons:
            yield Passage(step.name, measured, tuple(reasons.get(step.name, ())))
    if fate.row["step"] in {step.name for step in steps}:
        return
    for name in GLOBAL_STEPS:
        if name == HELDOUT_SPLIT and fate.split == "heldout":
            yield Passage(name, (), ("held out to be measured on",))
            return
        cuts, own = tuple(_cuts(fate, name)), tuple(reasons.get(name, ()))
        if cuts or own or name not in CUTTING:
            yield Passage(name, cuts, own)
        if own:
            return


def _cuts(fate: Fate, step: str) -> Iterator[str]:
    """What a step has cut out of a document that stays, or would have cut out of one that is removed."""
    found = [cut for cut in fate.row["cuts"] or () if cut["step"] == step]
    what = "would cut" if fate.split == "removed" else "cut"
    for cut in found[:SHOWN]:
        text = " ".join(cut["text"].split())
        shown = text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
        stays = "" if cut.get("stays_in") is None else f" (stays in {cut['stays_in']})"
        yield f"{what} characters {cut['begin']:,} to {cut['end']:,}{stays}: {shown}"
    if more := found[SHOWN:]:
        yield f"and {len(more):,} more, of {sum(cut['end'] - cut['begin'] for cut in more):,} characters"


def _edits(row: dict[str, Any], step: DocumentStep) -> Iterator[str]:
    yield from (f"{name} {row[name]}" for name in step.edits if row[name])
    yield from (f"{name} {row[name]} (left)" for name in step.left if row[name])


def _measures(row: dict[str, Any], step: DocumentStep) -> Iterator[str]:
    for rule in step.rules:
        if not isinstance(rule, Limit):
            continue
        value, language = row[rule.column], row["language"]
        if value is not None and rule.language in (None, language) and language not in rule.not_in:
            bounds = (("at least", rule.low), ("at most", rule.high))
            asked = " and ".join(f"{what} {bound:,.6g}" for what, bound in bounds if math.isfinite(bound))
            yield f"{rule.column} {value:,.6g} ({asked}{'' if rule.language is None else f', language {language}'})"
