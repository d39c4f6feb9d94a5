"""MinHash deduplication beside datatrove's: from JSON Lines to JSON Lines of the documents that stay.

    uv run benchmarks/data/minhash.py TEXT.jsonl --peer PYTHON [--size 100] [--again] [--bands 14 8]

PYTHON is an interpreter with datatrove[io,processing] and spacy; TEXT.jsonl has real documents in the column `text`,
from whose sentences the input of `--size` megabytes is made. Both sides run in a process of their own, 14 bands of 8
hash functions, word 5-grams; `--bands` are ours. Prints megabytes per CPU-second of the whole processes, start included
(of ours the median of some runs before the peer's and after), the ratio, and the share of the documents that one side
keeps and the other does not; with `--again` also between datatrove and itself with other hash functions, since pairs
near the threshold are found by chance.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import batched
from pathlib import Path

import numpy as np
import pyarrow as pa
from texts import write_texts

from lifecycle.core.progress import Silent
from lifecycle.data.config import DedupConfig
from lifecycle.data.document_writer import DocumentWriter
from lifecycle.data.documents import TAGGED, tagged_documents
from lifecycle.data.measures.identity import Identify
from lifecycle.data.measures.minhash import Sign
from lifecycle.data.selecting.daft_process import DaftProcess
from lifecycle.data.selecting.dedup import deduplicate
from lifecycle.data.selecting.earlier import Pool
from lifecycle.data.tagging.engine import Native

BATCH = 1024  # documents
OURS = 2  # runs of ours on each side of the peer's
READ = ("text", "source", "path", "url")  # columns


def main() -> None:
    """Runs both sides on the same input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--peer", type=Path, help="an interpreter with datatrove")
    parser.add_argument("--size", type=int, default=100, help="megabytes")
    parser.add_argument("--jaccard", type=float, default=0.72, help="(1/14)^(1/8): datatrove finds half of such pairs")
    parser.add_argument("--bands", nargs=2, type=int, default=(14, 8), help="ours: how many, hash functions of each")
    parser.add_argument("--again", action="store_true", help="datatrove with another seed, too")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        ours(arguments.run, DedupConfig(jaccard=arguments.jaccard, bands=arguments.bands[0], rows=arguments.bands[1]))
        return
    if arguments.peer is None:
        parser.error("--peer PYTHON: an interpreter with datatrove is needed for the other side")
    measure(arguments, 1)  # Python and Numba keep what they have compiled for the next start
    num, spent, kept = measure(arguments, arguments.size)
    rates = [arguments.size / seconds for seconds in spent]
    print(f"{arguments.size} MB, {num:,} documents; kept by us {len(kept[0]):,}, by datatrove {len(kept[1]):,}")
    print(f"MB per CPU-second: ours {rates[0]:.1f}, datatrove {rates[1]:.2f}, ratio {rates[0] / rates[1]:.1f}")
    print(f"kept by one side only: {len(kept[0] ^ kept[1]) / num:.2%} of the documents")
    if arguments.again:
        print(f"by one of two seeds of datatrove: {len(kept[1] ^ kept[2]) / num:.2%}")


def measure(arguments: argparse.Namespace, size: int) -> tuple[int, list[float], list[set[int]]]:
    """The number of documents in so many megabytes, and of each side the CPU-seconds and the documents kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "input").mkdir()
        num = write_texts(arguments.text, folder / "input" / "texts.jsonl", size * 1_000_000)
        own = [sys.executable, __file__, str(arguments.text), "--jaccard", str(arguments.jaccard), "--run", name]
        own += ["--bands", *map(str, arguments.bands)]
        program = [str(arguments.peer), str(Path(__file__).with_name("minhash_peer.py")), f"{name}/input"]
        peers = [[*program, f"{name}/peer-{seed}", str(seed)] for seed in ((1, 2) if arguments.again else (1,))]
        # A host's clock varies within minutes, and the peer takes some: ours runs before and after it.
        before = [_cpu_seconds_of(own) for _ in range(OURS)]
        of_peer = [_cpu_seconds_of(command) for command in peers]
        after = [_cpu_seconds_of(own) for _ in range(OURS)]
        spent = [statistics.median([*before, *after]), *of_peer]
        of_peers = [sorted((folder / f"peer-{seed}" / "kept").glob("*.jsonl")) for seed in range(1, 1 + len(peers))]
        return num, spent, [_kept(folder / "ours.jsonl"), *(_kept(*paths) for paths in of_peers)]


def ours(folder: Path, config: DedupConfig) -> None:
    """Reads `input/texts.jsonl`, writes `ours.jsonl`."""
    tagging = folder / "tagging"
    shutil.rmtree(tagging, ignore_errors=True)  # of the run before
    tagging.mkdir()
    identify, sign = Identify(), Sign(config.bands, config.rows)
    schema = pa.schema([*((name, pa.string()) for name in READ), *identify.columns, *sign.columns])
    with DocumentWriter(tagging, TAGGED, schema) as writer:
        for batch in _batches(folder / "input" / "texts.jsonl"):
            made = [*batch.columns, *identify(batch).columns, *sign(batch).columns]
            writer.write(pa.table(made, schema))
    stretches = tagged_documents(tagging)
    chosen = np.ones(stretches[-1].end, bool)
    pool = Pool.of(stretches, np.arange(len(chosen)), ())
    with DaftProcess(None) as daft:
        removed = deduplicate(pool, chosen, config, Native(1), daft, folder, Silent())
    chosen[removed["ordinal"].to_numpy()] = False
    with open(folder / "ours.jsonl", "w", encoding="utf-8") as file:
        for stretch in stretches:
            kept = stretch.read(["text"]).filter(pa.array(chosen[stretch.first : stretch.end]))
            file.writelines(json.dumps({"text": text}) + "\n" for text in kept["text"].to_pylist())


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with open(path, "rb") as file:
        for number, lines in enumerate(batched(file, BATCH)):
            texts = [json.loads(line)["text"] for line in lines]
            paths = [str(number * BATCH + at) for at in range(len(texts))]
            columns = (texts, ["texts"] * len(texts), paths, pa.nulls(len(texts), pa.string()))
            yield pa.record_batch(dict(zip(READ, columns, strict=True)))


def _cpu_seconds_of(command: list[str]) -> float:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr, env=kept)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _kept(*paths: Path) -> set[int]:
    """A hash of each document that is kept."""
    return {hash(json.loads(line)["text"]) for path in paths for line in path.read_text("utf-8").split("\n") if line}


if __name__ == "__main__":
    main()
