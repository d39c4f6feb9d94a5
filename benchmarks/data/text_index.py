"""The text index: what making it costs, its size, its memory, and lookups; beside infini-gram, if asked.

    uv run benchmarks/data/text_index.py DOCUMENTS [--size 1000] [--peer PYTHON]

DOCUMENTS has `kept-*.parquet`, as stage `documents` writes them; the first `--size` megabytes of their texts are used.
PYTHON is an interpreter with infini-gram, numpy and tqdm. It gets the same texts as 16-bit tokens of a BPE trained on
some of them, which costs it nothing here. Looked up are passages of the texts, of 60 tokens each, alone and in twenties
with other words between; infini-gram is asked for the passages alone. Prints CPU-seconds of whole processes, and
CPU-milliseconds of lookups, each with up to five documents. A passage may begin or end within a word.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lifecycle.core.artifact import Artifact, Draft, open_artifact
from lifecycle.core.progress import Silent
from lifecycle.data.document_writer import DocumentWriter
from lifecycle.data.inspecting.selected import read_parts
from lifecycle.data.inspecting.text_index import made_index
from lifecycle.data.inspecting.text_lookup import TextIndex

QUERIES, TOKENS, TOGETHER = 200, 60, 20
VOCABULARY, TRAINED = 32_000, 2000  # texts


def main() -> None:
    """Runs each side in processes of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("documents", type=Path)
    parser.add_argument("--size", type=int, default=1000, help="megabytes")
    parser.add_argument("--peer", type=Path, help="an interpreter with infini-gram")
    parser.add_argument("--run", choices=("make", "one", "all"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        {"make": make, "one": look_up_one, "all": look_up_all}[arguments.run](arguments.documents)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = write_documents(arguments.documents, folder, arguments.size * 1_000_000)
        tokenizer = trained(texts)
        (folder / "queries.json").write_text(json.dumps(queries(texts, tokenizer)))
        for what in ("make", "one", "all"):
            run(what, [sys.executable, __file__, str(folder), "--run", what])
        if arguments.peer is not None:
            write_tokens(texts, tokenizer, folder / "peer")
            run("infini-gram", [str(arguments.peer), str(Path(__file__).with_name("text_index_peer.py")), name])


def make(folder: Path) -> None:
    """Makes the index."""
    began = time.process_time()
    index = made_index(documents_of(folder), Silent())
    size, most = sum(facts.bytes for facts in index.manifest.files.values()), index.stats["text_bytes"]
    copy = sum(facts.bytes for name, facts in index.manifest.files.items() if name.endswith(".zst"))
    rate = most / 1e6 / (time.process_time() - began)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    memory = int(status["VmHWM"].split()[0]) / 1e6  # `ru_maxrss` would be that of the parent, if it has more
    print(
        f"made from {most / 1e6:,.0f} MB in {index.stats['documents']:,} documents, {rate:.0f} MB per CPU-second; "
        f"{size / most:.2f} bytes per byte of text, {copy / most:.2f} of them a copy; {memory:.2f} GB of memory"
    )


def look_up_one(folder: Path) -> None:
    """Looks up one passage: what a command costs, start included."""
    TextIndex(made_index(documents_of(folder), Silent())).find(read_queries(folder)[0]["text"], 20, 5)


def look_up_all(folder: Path) -> None:
    """Looks up all passages, one by one and in twenties."""
    index, texts = TextIndex(made_index(documents_of(folder), Silent())), [q["text"] for q in read_queries(folder)]
    index.find(texts[0], 20, 5)  # loads what is compiled
    found = []
    show("passages alone", [milliseconds(lambda text=text: found.append(index.find(text, 20, 5))) for text in texts])
    print(f"found, but for cut words: {sum(one.num_covered >= one.num_words - 2 for one in found)} of {len(texts)}")
    mixed = [" zzyzx ".join(texts[at : at + TOGETHER]) for at in range(0, len(texts), TOGETHER)]
    show(f"{TOGETHER} in a text", [milliseconds(lambda text=text: index.find(text, 20, 5)) for text in mixed])


def write_documents(source: Path, folder: Path, num_bytes: int) -> list[str]:
    """Writes documents with texts of so many bytes; returns the texts."""
    schema = pa.schema([("text", pa.string())])
    draft, texts = Draft(folder, "documents", {}, {}), list[str]()
    out, size = draft.open(), 0
    with DocumentWriter(out, "kept", schema) as writer:
        for part in read_parts(source, ["text"], ("kept",)):
            writer.write(pa.Table.from_batches([part.rows], schema))
            own = part.rows["text"].to_pylist()
            texts += own
            size += sum(len(text.encode()) for text in own)
            if size >= num_bytes:
                break
    with DocumentWriter(out, "heldout", schema):
        pass
    draft.commit({})
    return texts


def documents_of(folder: Path) -> Artifact:
    """The documents that were written."""
    return open_artifact(next(folder.glob("documents-*")))


def trained(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of some of the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(random.Random(0).sample(texts, min(TRAINED, len(texts))), trainer)
    return tokenizer


def queries(texts: list[str], tokenizer: Tokenizer) -> list[dict]:
    """Passages of the texts: as tokens, and as text."""
    chance, found = random.Random(1), list[dict]()
    while len(found) < QUERIES:
        encoded = tokenizer.encode(text := chance.choice(texts))
        if len(encoded.ids) > TOKENS:
            at = chance.randrange(len(encoded.ids) - TOKENS)
            begin, end = encoded.offsets[at][0], encoded.offsets[at + TOKENS - 1][1]
            if sum(word.isalnum() for word in text[begin:end].split()) > TOKENS // 4:
                found.append({"ids": encoded.ids[at : at + TOKENS], "text": text[begin:end]})
    return found


def read_queries(folder: Path) -> list[dict]:
    """The passages."""
    return json.loads((folder / "queries.json").read_text())


def write_tokens(texts: list[str], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokens as infini-gram reads them: 0xFFFF before each document, and where each begins."""
    folder.mkdir()
    with open(folder / "tokenized.0", "wb") as tokens, open(folder / "offset.0", "wb") as offsets:
        for at in range(0, len(texts), 1000):
            for encoded in tokenizer.encode_batch(texts[at : at + 1000]):
                offsets.write(np.uint64(tokens.tell()).tobytes())
                tokens.write(np.array([0xFFFF, *encoded.ids], np.uint16).tobytes())


def run(what: str, command: list[str]) -> None:
    """Runs a process; prints its CPU-seconds, with those of its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: {spent:.2f} CPU-seconds, start included", flush=True)


def milliseconds(work: Callable[[], object]) -> float:
    """CPU time of a call."""
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1000


def show(what: str, times: list[float]) -> None:
    """Prints the median and the longest."""
    print(f"{what}: median {np.median(times):.2f} ms, 90 % {np.percentile(times, 90):.2f}, longest {max(times):.2f}")


if __name__ == "__main__":
    main()
