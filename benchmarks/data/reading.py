"""Reading of files of many documents, beside what one would write with the libraries at hand.

    python benchmarks/data/reading.py FILE ...

For each file: documents, MB of text, MB of text per CPU-second and the memory at its highest, and of a peer in the same
run, in another process: for JSON Lines gzip and json, for WARC fastwarc's iterator with the same extraction of pages,
for mailboxes Python's mailbox. A peer counts what it can use and keeps nothing.
"""

import argparse
import gzip
import json
import mailbox
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from email import message_from_binary_file
from email.policy import default
from functools import partial
from pathlib import Path
from typing import Any

from fastwarc.warc import ArchiveIterator, WarcRecordType
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

from lifecycle.data.config import DataConfig
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.html_text import parse_html
from lifecycle.data.reading.raw import RawDocument
from lifecycle.data.reading.sources import list_files
from lifecycle.data.reading.streams import inner_name

ROUNDS = 3
type Counted = tuple[int, int]  # documents, and bytes of their texts


def ours(path: Path) -> Counted:
    config = DataConfig.model_validate({"sources": [{"name": "s", "path": str(path)}]})
    number = size = 0
    for item in extract_file(list_files(config)[0], config.sources[0], config.max_document_bytes):
        if isinstance(item, RawDocument):
            number += 1
            size += len(item.text.encode())
    return number, size


def json_lines(path: Path) -> Counted:
    number = size = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            number += 1
            size += len(json.loads(line)["text"].encode())
    return number, size


def pages(path: Path) -> Counted:
    number = size = 0
    for record in ArchiveIterator(str(path), record_types=WarcRecordType.response):
        data = record.reader.read()
        text = parse_html(bytes_to_str(data, record.http_charset or detect_encoding(data) or "utf-8"))[0]
        number += 1
        size += len(text.encode())
    return number, size


def mails(path: Path) -> Counted:
    number = size = 0
    read: Any = partial(message_from_binary_file, policy=default)  # `mbox` declares its own kind of messages
    mails: Any = mailbox.mbox(path, factory=read)
    for mail in mails:
        try:
            text = mail.get_body(("plain", "html")).get_content()
        except (AttributeError, LookupError, UnicodeError):
            continue
        number += 1
        size += len(text.encode("utf-8", "replace"))
    return number, size


PEERS = {".jsonl": json_lines, ".warc": pages, ".mbox": mails}


def measured(read: Callable[[Path], Counted], path: Path) -> str:
    """What a reader gives, in a process of its own for each round."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rounds = [pool.apply(one_round, (read, path)) for _ in range(ROUNDS)]
    number, size, _, memory = rounds[0]
    seconds = statistics.median(entry[2] for entry in rounds)
    rate = f"{size / 1e6 / seconds:.1f} MB per CPU-second"
    return f"{number:,} documents, {size / 1e6:.1f} MB of text, {rate}, at most {memory:.0f} MB of memory"


def one_round(read: Callable[[Path], Counted], path: Path) -> tuple[int, int, float, float]:
    start = time.process_time()
    number, size = read(path)
    seconds = time.process_time() - start
    return number, size, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    for path in parser.parse_args().files:
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
        print(f"  ours: {measured(ours, path)}")
        if peer := PEERS.get(Path(inner_name(path.name)[0]).suffix):
            print(f"  peer: {measured(peer, path)}")


if __name__ == "__main__":
    main()
