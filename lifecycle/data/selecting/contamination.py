"""Hits of test items in documents: `contamination.parquet`, and what it comes to for each task.

A row for each training document and each task's row, or held-out document, that have too much text in common; the
documents are those that had passed every step before decontamination. All of them were removed, or lost what they had
in common, as `outcome` says: `left` counts the items for which that is not so.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.data.documents import ROW_GROUP
from lifecycle.data.ngrams import Hashes, bare_characters, ngram_hashes
from lifecycle.data.placed_words import Words, words_of
from lifecycle.data.selecting.eval_items import TestItem
from lifecycle.data.selecting.overlap_index import Hit

FILE = "contamination.parquet"
# `task` is null for a held-out document; `item`: FILE:LINE of a task's row, or a document's name; `ordinal`: of the
# training document among the tagged ones; `share`: as decontamination compares it; `excerpt`: the longest run of words
# in common, as the item has it; `outcome`: what became of the document.
HITS = pa.schema([
    ("task", pa.string()), ("item", pa.string()), ("ordinal", pa.int64()), ("document", pa.string()),
    ("share", pa.float64()), ("excerpt", pa.string()), ("outcome", pa.string()),
])  # fmt: skip
REMOVED, CUT = "removed", "cut"  # outcomes
EXCERPT_CHARS = 200

type Key = tuple[str | None, str]  # task and item; without a task a held-out document


@dataclass(frozen=True)
class Evidence:
    """The documents that had an item's text: how many by what became of them, and the one with the largest share."""

    outcomes: Mapping[str, int]
    document: str
    share: float
    excerpt: str

    @property
    def num_documents(self) -> int:
        """How many they are."""
        return sum(self.outcomes.values())


def hit_table(hits: Iterable[tuple[int, Hit, Hashes]], names: Mapping[int, str]) -> pa.Table:
    """The rows of hits: a document's ordinal, the hit, and the n-grams that the document has in common with all items;
    `names` of the documents, by ordinal. Those documents will be removed, or `note_cuts` tells otherwise."""
    rows = [
        {
            "task": task, "item": hit.item.name, "ordinal": ordinal, "document": names[ordinal], "share": hit.share,
            "excerpt": excerpt, "outcome": REMOVED,
        }
        for ordinal, hit, common in hits
        for excerpt in [longest_common(hit.item.text, hit.ngram, common)]
        for task in hit.item.tasks or (None,)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=HITS)


def longest_common(text: str, n: int, common: Hashes) -> str:
    """The longest run of words of a text whose n-grams are all in `common`, cut to `EXCERPT_CHARS`."""
    data, grams, order, words = _placed(text, n)
    lows, highs = np.searchsorted(grams, common, "left"), np.searchsorted(grams, common, "right")
    places = np.unique(
        np.concatenate([order[low:high] for low, high in zip(lows.tolist(), highs.tolist(), strict=True)])
    )
    breaks = np.flatnonzero(np.diff(places) != 1)
    firsts, lasts = places[np.append(0, breaks + 1)], places[np.append(breaks, len(places) - 1)]
    longest = int((lasts - firsts).argmax())
    span = slice(int(words.begins[firsts[longest]]), int(words.ends[lasts[longest] + n - 1]))
    run = " ".join(data[span].decode().split())
    return run if len(run) <= EXCERPT_CHARS else run[: EXCERPT_CHARS - 1] + "…"


@lru_cache(maxsize=2)  # a long item is found in many documents; 50 MB for one of 10 MB
def _placed(text: str, n: int) -> tuple[bytes, Hashes, NDArray[np.int64], Words]:
    """A text's bytes, its n-grams, sorted, the number of the first word of each, and the words."""
    data = text.encode()
    words = words_of(np.frombuffer(data, np.uint8), bare_characters())
    grams = ngram_hashes(words.hashes, n)
    order = grams.argsort(kind="stable")
    return data, grams[order], order, words


def note_cuts(folder: Path, cut: NDArray[np.int64], scratch: Path) -> None:
    """Changes the outcome of documents, by their ordinals, that were cut instead of removed. `scratch`: a folder of the
    same file system."""
    at = HITS.get_field_index("outcome")
    with pq.ParquetWriter(scratch / FILE, HITS, compression="zstd") as writer:
        for hits in read_hits(folder, HITS.names):
            outcomes = np.where(np.isin(hits["ordinal"].to_numpy(), cut), CUT, REMOVED)
            writer.write_batch(hits.set_column(at, HITS.field(at), pa.array(outcomes, pa.string())))
    (scratch / FILE).replace(folder / FILE)


def contamination(
    folder: Path, items: Sequence[TestItem], too_short: NDArray[np.bool_], handled: NDArray[np.int64]
) -> dict[str, Any]:
    """By task, and for the held-out documents: rows with text, those long enough to be compared, those found in
    documents, those left in documents that were not handled, and the documents that they were found in.

    `handled`: the ordinals of the documents that decontamination has removed or cut.
    """
    rows, compared = defaultdict[str | None, set[str]](set), defaultdict[str | None, set[str]](set)
    for item, is_short in zip(items, too_short.tolist(), strict=True):
        for task in item.tasks or (None,):
            rows[task].add(item.name)
            if not is_short:
                compared[task].add(item.name)
    found, left = defaultdict[str | None, set[str]](set), defaultdict[str | None, set[str]](set)
    documents = defaultdict[str | None, set[int]](set)
    for hits in read_hits(folder, ["task", "item", "ordinal"]):
        stays = ~np.isin(hits["ordinal"].to_numpy(), handled)
        columns = (hits[name].to_pylist() for name in ("task", "item", "ordinal"))
        for task, item, ordinal, is_left in zip(*columns, stays.tolist(), strict=True):
            found[task].add(item)
            documents[task].add(ordinal)
            if is_left:
                left[task].add(item)
    amounts = {"rows": rows, "compared": compared, "found": found, "left": left, "documents": documents}
    counts = {task: {name: len(of[task]) for name, of in amounts.items()} for task in [*rows]}
    heldout = counts.pop(None, dict.fromkeys(amounts, 0))
    return {"tasks": {task: own for task, own in counts.items() if task is not None}, "heldout": heldout}


def read_hits(folder: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The hits in an artifact of stage `documents`, some at a time."""
    with pq.ParquetFile(folder / FILE) as file:
        yield from file.iter_batches(ROW_GROUP, columns=list(columns))


def evidence_of(folder: Path) -> dict[Key, Evidence]:
    """What was found of each item, those found in the most documents first."""
    outcomes, best = defaultdict[Key, Counter[str]](Counter), dict[Key, Evidence]()
    names = ["task", "item", "document", "share", "excerpt", "outcome"]
    for hits in read_hits(folder, names):
        columns = (hits[name].to_pylist() for name in names)
        for task, item, document, share, excerpt, outcome in zip(*columns, strict=True):
            key = (task, item)
            outcomes[key][outcome] += 1
            if key not in best or share > best[key].share:
                best[key] = Evidence({}, document, share, excerpt)
    order = sorted(outcomes.items(), key=lambda entry: (-entry[1].total(), entry[0][0] or "", entry[0][1]))
    return {key: replace(best[key], outcomes=dict(sorted(of.items(), reverse=True))) for key, of in order}
