"""Memory of tagging and selecting documents, and of writing token shards, for several sizes of the same kind of text.

    uv run benchmarks/data/memory.py TEXT.jsonl [--sizes 400 1600]

TEXT.jsonl has real documents in the column `text`, from whose sentences the input is made. Prints, for each size in
megabytes, the most memory that all processes of either work had at once (proportional set size, sampled), and the
wall time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from texts import write_texts

from lifecycle.core.progress import Silent
from lifecycle.data.config import DataConfig, SourceConfig
from lifecycle.data.documents import read_documents
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.data.shard_writing import write_token_shards
from lifecycle.data.tagging.engine import Native
from lifecycle.data.tagging.tagging import tag_documents
from lifecycle.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

SAMPLE_S = 0.2


def main() -> None:
    """Runs each size in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[400, 1600], help="megabytes")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        folder, work = arguments.run
        WORKS[work](Path(folder))
        return
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            num = write_texts(arguments.text, folder / "texts.jsonl", size * 1_000_000)
            for work in WORKS:
                started = time.monotonic()
                most = _most_memory([sys.executable, __file__, str(arguments.text), "--run", name, work])
                took = time.monotonic() - started
                print(
                    f"{size:6} MB {num:8,} documents  {work:9}  {most / 1e9:.2f} GB of memory  {took:.0f} s", flush=True
                )


def documents(folder: Path) -> None:
    """Tags and selects the texts in a folder."""
    config = DataConfig(sources=(SourceConfig(name="texts", path=str(folder / "texts.jsonl")),))
    for name in ("tagging", "documents"):
        (folder / name).mkdir()
    tag_documents(config, folder / "partitions", folder / "tagging", Silent())
    summary = prepare_documents(folder / "tagging", config, folder / "documents", Silent(), seed=0)
    print({entry["step"]: entry["documents_out"] for entry in summary["funnel"]})


def tokens(folder: Path) -> None:
    """Trains a tokenizer on the selected documents and writes token shards."""
    texts = (row["text"] for row in read_documents(folder / "documents", "kept", ["text"]))
    train_tokenizer(TokenizerConfig(vocab_size=8192), texts, folder / "tokenizer", seed=0)
    tokenizer = load_tokenizer(folder / "tokenizer")
    with Native(2) as engine:
        stats = write_token_shards({"": folder / "documents"}, tokenizer, folder / "tokens", Silent(), engine)
    print(stats["splits"]["train"])


WORKS = {"documents": documents, "tokens": tokens}


def _most_memory(command: list[str]) -> int:
    """Runs a command; the most bytes that it and its descendants had at once."""
    most = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            most = max(most, sum(map(_memory, _family(process.pid))))
            time.sleep(SAMPLE_S)
    if process.returncode:
        raise SystemExit(process.returncode)
    return most


def _family(parent: int) -> list[int]:
    """A process and its descendants."""
    family = [parent]
    for pid in family:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        except OSError:  # it has ended
            continue
        family += map(int, children.split())
    return family


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
