"""Tokenising into shards beside the batch encoder of Hugging Face's tokenizers, and random reads of the shards.

    uv run benchmarks/data/tokenising.py DOCUMENTS.parquet [--size 60] [--times 3] [--kinds KIND ...]

DOCUMENTS.parquet has real documents in the column `text`. Of them tokenizers are trained: ours (SentencePiece's BPE,
with the `tokenizer.json` that goes with it), and byte-level ones with the patterns of GPT-2 and of Llama 3. With each
the first `--size` megabytes are encoded, in a process of its own: by the peer from a list of texts to lists of ids, by
us from the documents' files to shards on disk, with one core and with two. Prints the medians of megabytes per
CPU-second and per second, start of workers included, and whether all ids are equal; then tokens per second of random
and of sequential reads, with the files in the page cache and not.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.progress import Silent
from lifecycle.data.document_writer import DocumentWriter
from lifecycle.data.shard_writing import write_token_shards
from lifecycle.data.shards import TokenShards
from lifecycle.data.tagging.engine import Native
from lifecycle.text.byte_level import LLAMA3_PATTERN
from lifecycle.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string())])
BATCH = 256  # documents that the peer gets at a time
VOCABULARY = 32_000
TRAINED_ON = 8_000_000  # bytes
KINDS = ("sentencepiece", "gpt2", "llama3")
SIDES = ("peer encode_batch", "peer encode_batch_fast", "ours")


def main() -> None:
    """Runs both sides on the same documents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("documents", type=Path)
    parser.add_argument("--size", type=int, default=60, help="megabytes of text")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)  # folder, kind, side, cores
    arguments = parser.parse_args()
    if arguments.run:
        folder, kind, side, cores = arguments.run
        print(json.dumps(measured(Path(folder), kind, side, int(cores))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_documents(arguments.documents, folder / "documents", arguments.size * 1_000_000)
        for kind in arguments.kinds:
            make_tokenizer(kind, folder)
            run(folder, kind, "ours", 1)  # Numba keeps what it has compiled
            compare(folder, kind, arguments.times)
        for line in reads(folder / f"shards-{arguments.kinds[-1]}"):
            print(line)


def compare(folder: Path, kind: str, times: int) -> None:
    """Prints a table of one tokenizer."""
    print(f"{kind}, {VOCABULARY:,} tokens: MB per CPU-second, MB per second, tokens")
    hashes = set()
    for cores in (1, 2):
        rates = {}
        for side in SIDES:
            found = [run(folder, kind, side, cores) for _ in range(times)]
            cpu, wall = (
                statistics.median(of["bytes"] / 1e6 / of[what] for of in found) for what in ("cpu_s", "wall_s")
            )
            hashes |= {of["hash"] for of in found}
            rates[side] = cpu
            print(f"  {side:22} {cores} cores {cpu:7.2f} {wall:7.2f} {found[0]['tokens']:12,}", flush=True)
        best = max(rates[side] for side in SIDES[:2])
        print(f"  ratio of CPU-seconds to the better peer: {rates['ours'] / best:.1f}")
    print(f"  ids {'equal' if len(hashes) == 1 else 'DIFFER'}", flush=True)


def make_documents(source: Path, folder: Path, num_bytes: int) -> None:
    """Writes the first documents as a stage does."""
    folder.mkdir()
    with DocumentWriter(folder, "kept", SCHEMA) as writer:
        size = 0
        for number, text in enumerate(_texts(source)):
            writer.write(pa.table([[f"{number:032x}"], ["source"], [text]], schema=SCHEMA))
            size += len(text.encode())
            if size >= num_bytes:
                return


def _texts(path: Path) -> Iterator[str]:
    for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["text"]):
        yield from batch["text"].to_pylist()


def make_tokenizer(kind: str, folder: Path) -> None:
    """Trains a tokenizer into the folder of its kind."""
    texts, out = _texts(folder / "documents" / "kept-00000.parquet"), folder / kind
    if kind == "sentencepiece":
        train_tokenizer(TokenizerConfig(vocab_size=VOCABULARY, sample_bytes=TRAINED_ON), texts, out, seed=0)
        return
    tokenizer: Any = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    tokenizer.pre_tokenizer = level if kind == "gpt2" else pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, names = pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>"]
    trainer: Any = trainers.BpeTrainer
    trained = trainer(vocab_size=VOCABULARY, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trained)
    out.mkdir()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({"eos_token": names[0]}))


def run(folder: Path, kind: str, side: str, cores: int) -> dict[str, Any]:
    """What `measured` finds in a process of its own, whose libraries have so many threads."""
    threads = {"RAYON_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": str(cores > 1).lower()}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, __file__, ".", "--run", str(folder), kind, side, str(cores)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=kept | threads)
    return json.loads(done.stdout)


def measured(folder: Path, kind: str, side: str, cores: int) -> dict[str, Any]:
    """CPU and wall seconds of one side, and a hash of the ids that it has made."""
    shards = folder / f"shards-{kind}"
    if side == "ours":
        tokenizer = load_tokenizer(folder / kind)
        shutil.rmtree(shards, ignore_errors=True)
        documents = folder / "documents"
        most = sum(path.stat().st_size for path in documents.iterdir()) // 4  # some shards, as a large corpus has

        def write() -> None:
            with Native(cores) as engine:
                write_token_shards({"": documents}, tokenizer, shards, Silent(), engine, shard_bytes=most)

        spent, _ = _timed(write)
        read = TokenShards(shards)
        in_order = sorted(range(len(read)), key=read.name)  # ids are numbers
        rows: list[Any] = [read[number][1:-1] for number in in_order]
    else:
        library, texts = Tokenizer.from_file(str(folder / kind / "tokenizer.json")), list(_all(folder))
        encode = getattr(library, side.removeprefix("peer "))
        spent, rows = _timed(lambda: [
            row.ids for batch in batched(texts, BATCH) for row in encode(list(batch), add_special_tokens=False)
        ])  # fmt: skip
    flat = np.concatenate([np.asarray(row, np.int32) for row in rows])
    size = sum(len(text.encode()) for text in _all(folder))
    return {**spent, "bytes": size, "tokens": len(flat), "hash": hashlib.sha256(flat.tobytes()).hexdigest()}


def _all(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "documents").glob("kept-*.parquet")):
        yield from _texts(path)


def _timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = work()
    return {"cpu_s": cpu_seconds() - cpu, "wall_s": time.perf_counter() - wall}, result


def reads(folder: Path) -> Iterator[str]:
    """Tokens per second of reading every document once, one by one in one thread."""
    shards = TokenShards(folder)
    orders = {"permuted": np.random.default_rng(0).permutation(len(shards)), "sequential": np.arange(len(shards))}
    yield f"reads of {len(shards):,} documents, {shards.num_tokens:,} tokens: million tokens per second"
    for cached in (True, False):
        for name, order in orders.items():
            if not cached:
                _drop(folder)
            reader, begun, num = TokenShards(folder), time.perf_counter(), 0
            for document in order.tolist():
                num += len(reader[document])
            rate = num / (time.perf_counter() - begun) / 1e6
            yield f"  {name:10} {'in the page cache' if cached else 'dropped from it':18} {rate:8.1f}"


def _drop(folder: Path) -> None:
    """Takes the shards out of the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
