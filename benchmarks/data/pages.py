"""The text of web pages beside trafilatura's: words against texts made by hand, and speed.

    uv run benchmarks/data/pages.py --peer PYTHON [--pages FOLDER] [--speed FOLDER] [--number 1500] [--shown 5]

PYTHON is an interpreter with trafilatura. Pages (`.html`) and their texts (`.txt`) are those of `tests/data/pages`, or
of another folder: such as the 181 news pages of github.com/scrapinghub/article-extraction-benchmark. Prints for both
sides the mean, median and worst F1 of the words (as bags; each character of scripts without spaces is a word),
precision and recall, and the pages on which ours is worst; of trafilatura also with its options `favor_recall`,
`favor_precision` and `fast`. With `--speed`, also megabytes of source per CPU-second over so many pages below a folder,
evenly drawn, on both sides without reading them from disk and without a first call.
"""

import argparse
import json
import re
import statistics
import subprocess
import time
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lifecycle.data.reading.html_text import parse_html

PAGES = Path(__file__).parents[2] / "tests/data/pages"
PEER = Path(__file__).with_name("pages_peer.py")
OPTIONS = ((), ("favor_recall",), ("favor_precision",), ("fast",))
LARGEST = 2_000_000  # bytes of a page: trafilatura takes minutes for larger ones
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class Score:
    name: str
    precision: float
    recall: float
    only_found: tuple[str, ...]
    only_meant: tuple[str, ...]

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def main() -> None:
    """Compares both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="an interpreter with trafilatura")
    parser.add_argument("--pages", type=Path, default=PAGES)
    parser.add_argument("--speed", type=Path, help="a folder with pages")
    parser.add_argument("--number", type=int, default=1500)
    parser.add_argument("--shown", type=int, default=5)
    args = parser.parse_args()
    pages = sorted(args.pages.glob("*.html"))
    meant = [page.with_suffix(".txt").read_text(encoding="utf-8") for page in pages]
    names = [page.stem for page in pages]
    found = [parse_html(page.read_text(encoding="utf-8"))[0] for page in pages]
    show("ours", scores(names, found, meant), args.shown)
    for options in OPTIONS if args.peer else ():
        texts, _ = of_peer(args.peer, pages, options)
        show(" ".join(("trafilatura", *options)), scores(names, texts, meant), 0)
    if args.speed:
        compare_speed(args.speed, args.number, args.peer)


def compare_speed(folder: Path, number: int, peer: Path | None) -> None:
    """Prints both sides' speed on pages of a folder."""
    every = sorted(path for path in folder.rglob("*.html") if path.is_file() and path.stat().st_size <= LARGEST)
    paths = every[:: max(1, len(every) // number)][:number]
    pages = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    size = sum(path.stat().st_size for path in paths) / 1e6
    parse_html(pages[0])
    spent = time.process_time()
    for page in pages:
        parse_html(page)
    spent = time.process_time() - spent
    print(f"{len(paths)} pages, {size:.1f} MB: ours {size / spent:.1f} MB per CPU-second")
    for options in ((), ("fast",)) if peer else ():
        _, theirs = of_peer(peer, paths, options) if peer else ([], 0.0)
        print(f"  {' '.join(('trafilatura', *options))} {size / theirs:.2f}, ours {theirs / spent:.1f} times as fast")


def of_peer(peer: Path, paths: Sequence[Path], options: Sequence[str]) -> tuple[list[str], float]:
    """The peer's texts, and its CPU-seconds."""
    command = [str(peer), str(PEER), *options]
    given = "\n".join(str(path.resolve()) for path in paths)
    answer = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    *texts, spent = map(json.loads, answer.stdout.splitlines())
    return texts, spent


def scores(names: Sequence[str], found: Sequence[str], meant: Sequence[str]) -> list[Score]:
    """How alike the words of texts are."""
    return [score(*entry) for entry in zip(names, found, meant, strict=True)]


def score(name: str, found: str, meant: str) -> Score:
    """How alike the words of two texts are, in whatever order."""
    a, b = (Counter(_WORD.findall(unicodedata.normalize("NFKC", text))) for text in (found, meant))
    common = (a & b).total()
    return Score(name, common / max(1, a.total()), common / max(1, b.total()), tuple(a - b), tuple(b - a))


def show(side: str, found: Sequence[Score], shown: int) -> None:
    f1 = [entry.f1 for entry in found]
    means = [statistics.mean(values) for values in zip(*((e.precision, e.recall) for e in found), strict=True)]
    print(
        f"{side}: {len(found)} pages, F1 mean {statistics.mean(f1):.4f}, median {statistics.median(f1):.4f}, "
        f"worst {min(f1):.4f}; precision {means[0]:.4f}, recall {means[1]:.4f}"
    )
    for entry in sorted(found, key=lambda entry: entry.f1)[:shown]:
        print(f"  {entry.f1:.3f} {entry.name}: too much {entry.only_found[:12]}, missing {entry.only_meant[:12]}")


if __name__ == "__main__":
    main()
