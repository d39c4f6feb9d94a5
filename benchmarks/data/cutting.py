"""What cutting passages costs: tagged documents, selected without it and with it.

    uv run benchmarks/data/cutting.py TAGGING

TAGGING is the folder of an artifact of stage `tagging`, such as that of `configs/data/debian_docs.yaml`. Prints
CPU-seconds of all processes, starts included, the most memory of one of them, and what each step has cut.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

from lifecycle.core.config import validate
from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.progress import Silent
from lifecycle.data.config import DataConfig
from lifecycle.data.documents import tagged_documents
from lifecycle.data.selecting.pipeline import prepare_documents

SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "paragraphs": {"paragraphs": 5},
    "lines": {"lines": 20},
    "substrings": {"substrings": 50},
    "all": {"paragraphs": 5, "lines": 20, "substrings": 50},
}


def main() -> None:
    """Runs each setting in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tagging", type=Path)
    parser.add_argument("--run", choices=SETTINGS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        work(arguments.tagging, SETTINGS[arguments.run])
        return
    for name in SETTINGS:
        subprocess.run([sys.executable, __file__, str(arguments.tagging), "--run", name], check=True)


def work(tagging: Path, dedup: dict[str, Any]) -> None:
    """Selects the documents of a folder."""
    read = (stretch.read(["source"])["source"].unique().to_pylist() for stretch in tagged_documents(tagging))
    sources = dict.fromkeys(chain.from_iterable(read))
    quality = {"gopher": None, "repetition": None}
    tree = {"sources": [{"name": name, "path": "."} for name in sources], "quality": quality, "dedup": dedup}
    started, before = time.monotonic(), cpu_seconds()
    with tempfile.TemporaryDirectory() as out:
        summary = prepare_documents(tagging, validate(DataConfig, tree), Path(out), Silent(), seed=0)
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    took, spent = time.monotonic() - started, cpu_seconds() - before
    size = summary["funnel"][0]["bytes_out"] / 1e6
    print(f"{dedup}: {size:,.0f} MB, {spent:.1f} CPU-s, {took:.0f} s, {most / 1e3:,.0f} MB of memory", flush=True)
    for entry in summary["funnel"]:
        if "bytes_cut" in entry["edits"]:
            print(f"  {entry['step']}: {json.dumps(entry['edits'])}, removed {entry['reasons']}", flush=True)


if __name__ == "__main__":
    main()
