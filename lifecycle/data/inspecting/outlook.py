"""What a corpus will take: partitions, cores, hours, disk and money, from rates measured on a sample of it.

The sample is tagged and selected as the run would do it, on one core, step by step. Costs that are measured per byte or
per document are scaled up; so are the shares of documents that are removed, which is cautious: duplicates are a larger
share of a larger corpus. What is not scaled: sorting takes a few percent more for ten times as many documents.
"""

import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa

from lifecycle.core.config import ConfigError
from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.progress import Silent
from lifecycle.data.config import DataConfig
from lifecycle.data.document_writer import DocumentWriter
from lifecycle.data.documents import TAGGED, tagged_documents
from lifecycle.data.inspecting.shuffle import Shuffle, likeness_in
from lifecycle.data.measures.filters import tagging_steps
from lifecycle.data.measures.steps import DocumentStep, run_steps
from lifecycle.data.reading.raw import Skipped
from lifecycle.data.reading.sources import list_files
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.data.shard_writing import text_in_memory
from lifecycle.data.tagging.partition_store import WRITE
from lifecycle.data.tagging.partitions import READ, Partition, partitions_of, raw_batches, tagged_schema
from lifecycle.data.tagging.tagging import Reading, read_reading, write_reading

SAMPLE_BYTES = 20_000_000  # of input: a few seconds' work, and enough documents for a share of one in a hundred
LEAST_DOCUMENTS = 100
SELECT = "select and compare"
TOKEN_BYTES = 1  # of tokens for a byte of text, at most: four for a token, which has some four of text

type Spent = defaultdict[str, float]  # CPU-seconds by step


@dataclass(frozen=True)
class Outlook:
    """Measured on the sample, and what follows for `num_bytes` of input."""

    sample_bytes: int
    sample_documents: int
    num_bytes: int
    num_partitions: int
    cpu_s: dict[str, float]  # of the whole corpus, by step
    disk_bytes: dict[str, int]
    num_documents: int
    num_kept: int
    shuffle: Shuffle  # what comparing them moves
    shard_memory_bytes: int  # of each process that shuffles token shards

    @property
    def cpu_hours(self) -> float:
        """Of all steps."""
        return sum(self.cpu_s.values()) / 3600

    def rate(self, step: str) -> float:
        """Megabytes of input per CPU-second."""
        return self.num_bytes / 1e6 / self.cpu_s[step] if self.cpu_s[step] else float("inf")


def outlook_of(config: DataConfig, num_bytes: int | None = None, seed: int = 0) -> Outlook:
    """Measures a sample of the sources, and says what `num_bytes` of such input take; None: what is there.

    Raises `ConfigError` if the sources cannot be used, or too little of the sample can be trained on.
    """
    partitions = list(partitions_of(list_files(config), config))
    total = sum(partition.num_bytes for partition in partitions)
    sample = _sample(partitions, seed)
    size = sum(partition.num_bytes for partition in sample)
    if not size:
        raise ConfigError("the sources have no readable bytes to measure; correct data.sources")
    wanted = total if num_bytes is None else num_bytes
    spent: Spent = defaultdict(float)
    with tempfile.TemporaryDirectory(prefix="outlook-") as name:
        tagging = Path(name) / "tagging"
        tagging.mkdir()
        num_tagged = _tag(sample, config, tagging, spent)
        if num_tagged < LEAST_DOCUMENTS:
            raise ConfigError(f"{num_tagged} documents are too few to measure; {LEAST_DOCUMENTS} are needed")
        few_s, _ = _select(_every_tenth(tagging, Path(name) / "few", config), config, seed)
        all_s, summary = _select(tagging, config, seed)
        spent[SELECT] = max(0.0, all_s - few_s) / 0.9  # without what starting takes
        out = tagging.with_name(f"{tagging.name}-selected")
        likeness = likeness_in(tagging)
        kept, by_folder = summary["train"], {folder: _bytes_in(folder) for folder in (tagging, out)}
    scale = wanted / size
    disk = {"partitions": by_folder[tagging], "tagged": by_folder[tagging], "documents": by_folder[out]}
    disk["token shards"] = 2 * TOKEN_BYTES * kept["bytes"]  # both passes write them
    num_documents = round(num_tagged * scale)
    shuffle = Shuffle.of(likeness, num_documents, config.dedup.bands, 1 + config.dedup.addresses)
    return Outlook(
        size, num_tagged, wanted, round(len(partitions) * wanted / total),
        {step: seconds * scale for step, seconds in spent.items()},
        {what: int(count * scale) for what, count in disk.items()}, num_documents,
        round(kept["documents"] * scale), shuffle, TOKEN_BYTES * text_in_memory(int(kept["bytes"] * scale)),
    )  # fmt: skip


def _sample(partitions: Sequence[Partition], seed: int) -> list[Partition]:
    """Partitions drawn from all of them, up to `SAMPLE_BYTES`, at least one."""
    drawn = random.Random(seed).sample(partitions, len(partitions))
    room = iter(_running(drawn))
    return [part for part, _ in takewhile(lambda entry: entry[1] < SAMPLE_BYTES, room)]


def _running(partitions: Sequence[Partition]) -> Iterator[tuple[Partition, int]]:
    """Each partition with the bytes before it."""
    before = 0
    for partition in partitions:
        yield partition, before
        before += partition.num_bytes


def _tag(sample: Sequence[Partition], config: DataConfig, out: Path, spent: Spent) -> int:
    """Tags the sample; counts the seconds of each step, without those of the first batch, which loads and compiles."""
    steps, skipped = tagging_steps(config), list[Skipped]()
    num_documents = 0
    with DocumentWriter(out, TAGGED, tagged_schema(config)) as writer:
        for partition in sample:
            batches = raw_batches(partition, skipped)
            while (batch := _timed(READ, spent, lambda batches=batches: next(batches, None))) is not None:
                for step in steps:
                    if not num_documents:
                        step.measure(batch)
                    batch = _measured(step, batch, spent)
                num_documents += batch.num_rows
                _timed(WRITE, spent, lambda batch=batch: writer.write(pa.Table.from_batches([batch])))
    write_reading(out, Reading(len(sample), sum(partition.num_bytes for partition in sample), tuple(skipped)))
    return num_documents


def _every_tenth(tagging: Path, out: Path, config: DataConfig) -> Path:
    """A folder with a tenth of the tagged documents."""
    out.mkdir()
    with DocumentWriter(out, TAGGED, tagged_schema(config)) as writer:
        for stretch in tagged_documents(tagging):
            tenth = pa.array(range(0, stretch.num_documents, 10))
            writer.write(stretch.read().drop_columns("ordinal").take(tenth))
    write_reading(out, read_reading(tagging))
    return out


def _select(tagging: Path, config: DataConfig, seed: int) -> tuple[float, dict[str, Any]]:
    """Selects from tagged documents in this process; the CPU-seconds that it took, and the summary."""
    out = tagging.with_name(f"{tagging.name}-selected")
    out.mkdir()
    started = cpu_seconds()
    summary = prepare_documents(tagging, config.model_copy(update={"workers": 1}), out, Silent(), seed)
    return cpu_seconds() - started, summary


def _measured(step: DocumentStep, batch: pa.RecordBatch, spent: Spent) -> pa.RecordBatch:
    return _timed(step.name, spent, lambda: run_steps(batch, [step.measure]))


def _timed[R](name: str, spent: Spent, work: Callable[[], R]) -> R:
    """Does some work of this process; counts its CPU-seconds."""
    started = time.process_time()
    result = work()
    spent[name] += time.process_time() - started
    return result


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
