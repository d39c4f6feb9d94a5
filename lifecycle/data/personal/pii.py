"""Personal data: e-mail and IP addresses, phone numbers, numbers of accounts, cards and persons, and secret keys are
replaced by a word that names their kind, and counted.

Each kind has rules that check what they find: `addresses.py`, `phones.py`, `accounts.py`, `national_ids.py` and
`secrets.py`. `masking.py` applies them. Bare runs of digits in source code are left alone unless quoted.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lifecycle.data.config import DataConfig, PiiKind
from lifecycle.data.measures.steps import DocumentStep, Limit
from lifecycle.data.personal.masking import Span, mask, windows_of
from lifecycle.data.personal.pii_rule import Where
from lifecycle.data.personal.places import Column, masked_places

PLACES: tuple[Column, ...] = ("url", "path")
KINDS: tuple[PiiKind, ...] = get_args(PiiKind)
_SPANS = pa.list_(pa.struct([
    ("column", pa.string()), ("kind", pa.string()), ("rule", pa.string()), ("begin", pa.int64()), ("end", pa.int64()),
    ("hash", pa.string()),
]))  # fmt: skip


@dataclass(frozen=True)
class MaskPii:
    """`text`, `url`, `path` and the strings in `meta`, masked, how many of each kind the first three have, and where:
    `pii_spans`.

    A span names its column, the kind and the rule that found it, and its place in the characters of the column as it is
    written, where it or its mask is. With a key it has a hash of the value (BLAKE2b; digits without what separates
    them, addresses in lower case), which nobody without the key can compare with anything.
    """

    kept: tuple[PiiKind, ...] = ()
    hash_key: bytes | None = field(default=None, repr=False)
    columns: ClassVar[pa.Schema] = pa.schema([
        ("text", pa.string()), *((column, pa.string()) for column in PLACES), ("meta", pa.string()),
        *((f"pii_{kind}", pa.int64()) for kind in KINDS), ("pii_spans", _SPANS),
    ])  # fmt: skip

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of a batch."""
        formats, languages = batch["format"].to_pylist(), batch["language"].to_pylist()
        wheres = [Where(format == "code", language) for format, language in zip(formats, languages, strict=True)]
        changed: dict[int, str] = {}
        rows: list[list[dict[str, Any]]] = [[] for _ in wheres]
        for number, windows in windows_of(batch["text"]):
            before = batch["text"][number].as_py().encode()
            text, spans = mask(before, windows, wheres[number], self.kept)
            rows[number] = self._rows("text", text, spans)
            if text != before:
                changed[number] = text.decode()
        places = [self._masked_places(batch, column, rows) for column in PLACES]
        counts = [Counter(row["kind"] for row in document) for document in rows]
        columns = (pa.array([count[kind] for count in counts], pa.int64()) for kind in KINDS)
        texts, metas = _with(batch["text"], changed), _with(batch["meta"], self._changed_metas(batch["meta"], wheres))
        return pa.record_batch([texts, *places, metas, *columns, pa.array(rows, _SPANS)], schema=self.columns)

    def _masked_places(self, batch: pa.RecordBatch, column: Column, rows: list[list[dict[str, Any]]]) -> pa.Array:
        """A column of addresses or paths, masked; what was found is added to the rows of `pii_spans`."""
        found = masked_places(column, batch[column].to_pylist(), batch["language"].to_pylist(), self.kept)
        for number, masked in found.items():
            rows[number] += self._rows(column, masked.text.encode(), masked.spans)
        return _with(batch[column], {number: masked.text for number, masked in found.items()})

    def _rows(self, column: str, text: bytes, spans: Sequence[Span]) -> list[dict[str, Any]]:
        """`pii_spans` of a text: places in its bytes become places in its characters."""
        rows: list[dict[str, Any]] = []
        at = chars = 0
        for span in spans:
            begin = chars + len(text[at : span.begin].decode())
            at, chars = span.end, begin + len(text[span.begin : span.end].decode())
            about = {"column": column, "kind": span.kind, "rule": span.rule}
            rows.append(about | {"begin": begin, "end": chars, "hash": self._hash(span)})
        return rows

    def _hash(self, span: Span) -> str | None:
        if self.hash_key is None:
            return None
        key = blake2b(self.hash_key).digest()  # of any length
        return blake2b(span.value.encode(), key=key, digest_size=16, person=span.kind.encode()).hexdigest()

    def _changed_metas(self, metas: pa.Array, wheres: Sequence[Where]) -> dict[int, str]:
        changed: dict[int, str] = {}
        for number, _ in windows_of(metas):
            values = json.loads(metas[number].as_py())
            strings = [name for name, value in values.items() if isinstance(value, str)]
            masked = mask_texts([values[name] for name in strings], Where(False, wheres[number].language), self.kept)
            changed[number] = json.dumps(values | dict(zip(strings, masked, strict=True)), sort_keys=True)
        return changed


def mask_texts(texts: Sequence[str], where: Where, kept: Iterable[PiiKind] = ()) -> list[str]:
    """Some texts, masked."""
    masked = list(texts)
    for number, windows in windows_of(pa.array(texts, pa.string())):
        masked[number] = mask(texts[number].encode(), windows, where, frozenset(kept))[0].decode()
    return masked


def _with(column: pa.Array, changed: dict[int, str]) -> pa.Array:
    """The column with other values at some places."""
    if not changed:
        return column
    is_changed = np.zeros(len(column), bool)
    is_changed[list(changed)] = True
    return pc.call_function(
        "replace_with_mask", [column, pa.array(is_changed), pa.array(changed.values(), pa.string())]
    )


def pii_step(config: DataConfig) -> DocumentStep:
    """The step `pii`."""
    own = config.pii
    counted = {kind: f"pii_{kind}" for kind in KINDS}
    return DocumentStep(
        "pii",
        MaskPii(own.keep, None if own.hash_key is None else own.hash_key.get_secret_value()),
        rules=tuple(
            Limit(counted[kind], counted[kind], "{value} > {high}", high=high) for kind, high in own.max_count.items()
        ),
        edits=tuple(column for kind, column in counted.items() if kind not in own.keep),
        left=tuple(column for kind, column in counted.items() if kind in own.keep),
        settings="data.pii.max_count",
    )
