"""Small tables of documents for tests: as they are read, tagged, and with the verdicts of removals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lifecycle.core.config import validate
from lifecycle.data.config import DataConfig
from lifecycle.data.document_writer import DocumentWriter
from lifecycle.data.documents import TAGGED, Stretch, tagged_documents
from lifecycle.data.measures.filters import document_steps
from lifecycle.data.measures.steps import DocumentStep, run_steps
from lifecycle.data.reading.raw import RawDocument, raw_batch
from lifecycle.data.selecting.selection import removed_documents, select
from lifecycle.data.web_names import ADDRESS_BYTES, address_hash


@dataclass(frozen=True)
class Verdict:
    """What became of a document; all None for one that stays."""

    step: str | None = None
    reason: str | None = None
    detail: str | None = None
    reasons: list[dict[str, str]] | None = None


def data_config(path: str = ".", **settings: Any) -> DataConfig:
    return validate(DataConfig, {"sources": [{"name": "mine", "path": path, "license": "CC0"}], **settings})


def raw(text: str, format: str = "text", path: str = "p", source: str = "s", **meta: Any) -> RawDocument:
    return RawDocument(text, source, path, "CC0", format, meta, 0)


def tagged(documents: Sequence[RawDocument], config: DataConfig | None = None) -> pa.Table:
    """The documents with the columns of all map steps, numbered."""
    steps = [step.measure for step in document_steps(config or data_config())]
    return numbered(pa.Table.from_batches([run_steps(raw_batch(documents), steps)]))


def table_of(texts: Sequence[str], source: str = "s") -> pa.Table:
    """Documents that have a text, a source and a path; nothing is measured."""
    documents = [raw(text, path=f"f{number}", source=source) for number, text in enumerate(texts)]
    return numbered(pa.Table.from_batches([raw_batch(documents)]))


def at_addresses(documents: pa.Table, urls: Sequence[str | None]) -> pa.Table:
    """The documents with hashes of other addresses."""
    hashes = pa.array([None if url is None else address_hash(url) for url in urls], pa.binary(ADDRESS_BYTES))
    return documents.set_column(documents.schema.get_field_index("address"), "address", hashes)


def stored(documents: pa.Table, folder: Path) -> list[Stretch]:
    """Numbered documents, as the artifact of tagging has them in a folder."""
    folder.mkdir(exist_ok=True)
    rows = documents.drop_columns("ordinal")
    with DocumentWriter(folder, TAGGED, rows.schema) as writer:
        writer.write(rows)
    return tagged_documents(folder)


def numbered(documents: pa.Table) -> pa.Table:
    return documents.append_column("ordinal", pa.array(range(len(documents)), pa.int64()))


def verdicts(documents: pa.Table, removals: pa.Table) -> list[Verdict]:
    """One per document, in their order."""
    names = ["step", "reason", "detail", "reasons"]
    removed = removed_documents(documents, removals)
    rows = dict(zip(removed["ordinal"].to_pylist(), removed.select(names).to_pylist(), strict=True))
    return [Verdict(**rows.get(ordinal, {})) for ordinal in documents["ordinal"].to_pylist()]


def judged(step: DocumentStep, document: RawDocument, **columns: str) -> tuple[dict[str, Any], Verdict]:
    """The row of a document after one step, with columns of earlier steps, and the verdict of the step's rules."""
    batch = raw_batch([document])
    for name, value in columns.items():
        batch = batch.append_column(name, pa.array([value]))
    documents = numbered(pa.Table.from_batches([run_steps(batch, [step.measure])]))
    return documents.to_pylist()[0], verdicts(documents, select(documents, [step]))[0]
