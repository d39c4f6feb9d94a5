"""Decontamination: removes whole training documents that contain text that the model will be tested on.

Word 13-grams by default, as in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C). The share of n-grams in common
decides, as in Tulu 3 (Lambert et al. 2024, arXiv:2411.15124), so that a licence header alone does not count. The share
is taken on both sides: how much of the test item the training document contains, and how much of the training document
the test item contains (an excerpt of a held-out document must not be trained on, either).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lifecycle.core.config import ConfigError
from lifecycle.data.config import DecontaminationConfig
from lifecycle.data.documents import document_names
from lifecycle.data.ngrams import Hashes, ngram_hashes, word_hashes, words_of
from lifecycle.data.selection import removals
from lifecycle.data.steps import Failure

# An item shorter than the n-gram is compared as one n-gram. Below eight words (a question such as "What is the capital
# of France?") its presence in a text proves nothing, so it is not compared, only counted.
MIN_ITEM_WORDS = 8
# As in GPT-3, n-grams that more documents than this have in common are boilerplate (licences, page frames, tables of
# the same kind). They are ignored in held-out documents, which come from the same sources, but not in evaluation
# rows: a question that occurs in twenty training documents is the worst case, not a harmless one.
MAX_DOCUMENTS = 10
HELDOUT = "heldout_overlap"
STEP = "decontamination"


@dataclass(frozen=True)
class TestItem:
    """Text that must not be trained on: a held-out document, or one text of an evaluation row."""

    name: str  # shown in the removed document's detail
    kind: str  # the reason: heldout_overlap or eval_overlap
    text: str

    __test__ = False  # not a pytest class


@dataclass(frozen=True)
class Hit:
    """The test item that a document overlaps most, and the share."""

    item: TestItem
    share: float


def decontaminate(
    documents: pa.Table, items: Sequence[TestItem], config: DecontaminationConfig
) -> tuple[pa.Table, int]:
    """The removals of training documents that overlap an item, and the number of items too short to compare.

    Reads the columns `ordinal` and `text`.
    """
    index = OverlapIndex(items, config.ngram)
    matches = [index.match(text) for text in documents["text"].to_pylist()]
    index.drop_boilerplate(matches)
    hits = zip(documents["ordinal"].to_pylist(), map(index.worst, matches), strict=True)
    failures = (
        Failure(ordinal, hit.item.kind, f"{hit.share:.2f} of the n-grams with {hit.item.name}")
        for ordinal, hit in hits
        if hit and hit.share >= config.min_overlap
    )
    return removals(STEP, failures), index.num_too_short


def heldout_items(documents: pa.Table) -> list[TestItem]:
    """Held-out documents as test items."""
    texts = zip(document_names(documents), documents["text"].to_pylist(), strict=True)
    return [TestItem(name, HELDOUT, text) for name, text in texts]


def eval_items(files: Iterable[Path]) -> list[TestItem]:
    """An item for every text in the rows of JSONL files, and of Parquet files, of which `text` counts alone if there is
    such a column. A broken row is text too. Raises `ConfigError` for a file that cannot be read.
    """
    return [item for path in files for item in (_eval_parquet if path.suffix == ".parquet" else _eval_file)(path)]


@dataclass(frozen=True)
class Match:
    """The n-grams that a text has in common with the items: positions in the index, by n-gram length.

    `num_own` is the number of the text's distinct n-grams of full length.
    """

    positions: dict[int, NDArray[np.int64]]
    num_own: int


class OverlapIndex:
    """The distinct n-grams of all items, by length: sorted hashes, and which items contain each."""

    def __init__(self, items: Sequence[TestItem], ngram: int) -> None:
        self.items = items
        self.ngram = ngram
        self.num_too_short = 0
        grams: dict[int, list[tuple[int, Hashes]]] = {}
        for number, item in enumerate(items):
            words = words_of(item.text)
            n = min(ngram, len(words))
            if n < min(MIN_ITEM_WORDS, ngram):
                self.num_too_short += 1
            else:
                grams.setdefault(n, []).append((number, np.unique(ngram_hashes(word_hashes(words), n))))
        self._tables = {n: _Table.of(entries, len(items)) for n, entries in grams.items()}
        self._is_heldout = np.array([item.kind == HELDOUT for item in items], bool)

    def match(self, text: str) -> Match:
        """The n-grams that a text shares with any item."""
        words = word_hashes(words_of(text))
        own = {n: np.unique(ngram_hashes(words, n)) for n in {*self._tables, self.ngram}}
        return Match({n: table.find(own[n]) for n, table in self._tables.items()}, len(own[self.ngram]))

    def drop_boilerplate(self, matches: Sequence[Match]) -> None:
        """Drops from the held-out items all n-grams that occur in more than `MAX_DOCUMENTS` of the texts."""
        for n, table in self._tables.items():
            counts = np.zeros(len(table.hashes), np.int64)
            for match in matches:
                counts[match.positions[n]] += 1
            table.drop(counts > MAX_DOCUMENTS, self._is_heldout)

    def worst(self, match: Match) -> Hit | None:
        """The item with the largest share in common with a text; for each item, the larger of the two sides' shares."""
        best: Hit | None = None
        for n, table in self._tables.items():
            common = table.count(match.positions[n])
            if not common.any():
                continue
            shares = common / np.maximum(table.sizes, 1)
            if n == self.ngram:
                shares = np.maximum(shares, common / match.num_own)
            at = int(shares.argmax())
            if best is None or shares[at] > best.share:
                best = Hit(self.items[at], float(shares[at]))
        return best


@dataclass
class _Table:
    """N-grams of one length. The items that contain `hashes[i]` are `owners[first[i] : first[i + 1]]`."""

    hashes: Hashes
    first: NDArray[np.int64]
    owners: NDArray[np.int64]
    live: NDArray[np.bool_]  # parallel to owners; False for boilerplate
    sizes: NDArray[np.int64]  # live n-grams of each item

    @classmethod
    def of(cls, entries: list[tuple[int, Hashes]], num_items: int) -> "_Table":
        hashes = np.concatenate([grams for _, grams in entries])
        owners = np.concatenate([np.full(len(grams), number, np.int64) for number, grams in entries])
        order = np.lexsort((owners, hashes))
        distinct, first = np.unique(hashes[order], return_index=True)
        sizes = np.bincount(owners, minlength=num_items)
        return cls(distinct, np.append(first, len(order)), owners[order], np.ones(len(order), bool), sizes)

    def find(self, own: Hashes) -> NDArray[np.int64]:
        """Positions in `hashes` of the text's n-grams that occur there."""
        positions = np.searchsorted(self.hashes, own)
        positions[positions == len(self.hashes)] = 0
        return positions[self.hashes[positions] == own]

    def drop(self, common: NDArray[np.bool_], of_items: NDArray[np.bool_]) -> None:
        """Marks common n-grams as boilerplate in the items selected by `of_items`; `common` is parallel to `hashes`."""
        self.live &= ~(np.repeat(common, np.diff(self.first)) & of_items[self.owners])
        self.sizes = np.bincount(self.owners[self.live], minlength=len(self.sizes))

    def count(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Per item, how many live n-grams are at these positions."""
        starts, lengths = self.first[positions], np.diff(self.first)[positions]
        # for each run of owners: its start, less its position in `rows`
        offsets = np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        rows = offsets + np.arange(len(offsets))
        return np.bincount(self.owners[rows[self.live[rows]]], minlength=len(self.sizes))


def _eval_file(path: Path) -> Iterator[TestItem]:
    try:
        # U+2028 and the like do not end a JSON line; one that is not UTF-8 is a faulty row
        lines = path.read_bytes().decode(errors="replace").split("\n")
    except OSError as error:
        raise ConfigError(
            f"evaluation rows {path}: {error}; they are needed to keep them out of training text"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the task counts it as faulty; its text stays out of training all the same
            row = line
        yield from (TestItem(f"{path.name}:{number}", "eval_overlap", text) for text in texts_in(row))


def _eval_parquet(path: Path) -> Iterator[TestItem]:
    try:
        columns = ["text"] if "text" in pq.read_schema(path).names else None  # documents have much besides
        rows = pq.read_table(path, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        problem = str(error).partition("\n")[0]
        raise ConfigError(f"evaluation rows {path}: {problem}; copy the file again") from None
    for number, row in enumerate(rows, 1):
        yield from (TestItem(f"{path.name}:{number}", "eval_overlap", text) for text in texts_in(row))


def texts_in(value: Any) -> Iterator[str]:
    """All strings in a JSON value, depth first."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for element in value:
            yield from texts_in(element)
    elif isinstance(value, dict):
        for element in value.values():
            yield from texts_in(element)
