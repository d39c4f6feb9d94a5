"""Text of man pages and LaTeX beside the programs that are made for them, word by word.

    python benchmarks/data/markup_text.py man FOLDER [--program mandoc]
    python benchmarks/data/markup_text.py latex FOLDER [--program pandoc]

Reads the pages (also `.gz`) or `.tex` files below a folder, in mdoc(7) too, and prints for each kind: files, F1 of the
words (as bags, the mean, the median and the worst), the ratio of their sequence in the first 1,500 words (difflib) for
a hundred files, MB of source per CPU-second of ours and of the program's, and the files that differ most. Formulas of
LaTeX are left out: pandoc writes them in other ways. So are files that the program fails on or finds no text in.
"""

import argparse
import difflib
import gzip
import re
import resource
import statistics
import subprocess
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lifecycle.data.reading.decoding import decode
from lifecycle.data.reading.latex import parse_latex
from lifecycle.data.reading.man_pages import parse_man
from lifecycle.data.reading.raw import UnreadableError

OPTIONS = {
    "man": ["-T", "utf8", "-O", "width=999"],
    "latex": [
        "--wrap=none", "-f", "latex", "-t", "markdown-raw_tex-citations-header_attributes-link_attributes-raw_html"
        "-native_spans-native_divs-bracketed_spans-fenced_divs-raw_attribute",
    ],
}  # fmt: skip
FORMULAS = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]|\\begin\{(\w+)\*?\}.*?\\end\{\1\*?\}|\$[^$]*\$", re.DOTALL)
LEAST = 3000  # bytes of a LaTeX file: smaller ones are settings, or include others
LEAST_WORDS = 100  # that the program finds, or it is no text
SHOWN = 8


@dataclass(frozen=True)
class Compared:
    name: str
    f1: float
    order: float
    only_ours: list[str]
    only_theirs: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=OPTIONS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--program", default=None)
    args = parser.parse_args()
    program = args.program or {"man": "mandoc", "latex": "pandoc"}[args.format]
    found: dict[str, list[Compared]] = {}
    seconds, theirs, size = 0.0, -children(), 0
    for path in sorted(path for path in args.folder.rglob("*") if is_wanted(path, args.format)):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        source = decode(data, args.format, path.name)
        reference = rendered(program, args.format, data)
        start = time.process_time()
        try:
            text, _ = (parse_man if args.format == "man" else parse_latex)(source)
        except UnreadableError:
            continue
        seconds += time.process_time() - start
        size += len(data)
        if reference is not None and len(words(reference)) >= LEAST_WORDS:
            kind = "mdoc" if args.format == "man" and re.search(r"^\.\s*Dd\b", source, re.MULTILINE) else args.format
            entries = found.setdefault(kind, [])
            entries.append(compared(path.name, words(text), words(reference), len(entries) < 100))
    theirs += children()
    for kind, entries in found.items():
        show(kind, entries)
    print(f"ours {size / 1e6 / seconds:.2f} MB per CPU-second, {program} {size / 1e6 / theirs:.2f}")


def is_wanted(path: Path, format: str) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    if format == "latex":
        return path.suffix == ".tex" and path.stat().st_size > LEAST
    return re.search(r"\.[1-9][a-z]{0,6}(\.gz)?$", path.name) is not None


def rendered(program: str, format: str, data: bytes) -> str | None:
    """What the program makes of a source; of a page without its first and last line, which are on every one."""
    ended = subprocess.run([program, *OPTIONS[format]], input=data, capture_output=True, check=False)
    text = re.sub(".\x08", "", ended.stdout.decode("utf-8", "replace"))
    if not text or (format == "latex" and ended.returncode):
        return None
    return "\n".join(text.strip("\n").split("\n")[1:-1]) if format == "man" else text


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", FORMULAS.sub(" ", text)))


def compared(name: str, ours: list[str], theirs: list[str], has_order: bool) -> Compared:
    a, b = Counter(ours), Counter(theirs)
    f1 = 2 * (a & b).total() / max(1, a.total() + b.total())
    order = difflib.SequenceMatcher(None, ours[:1500], theirs[:1500], autojunk=False).ratio() if has_order else 1.0
    return Compared(name, f1, order, [*(a - b)][:SHOWN], [*(b - a)][:SHOWN])


def show(kind: str, entries: list[Compared]) -> None:
    scores = [entry.f1 for entry in entries]
    order = statistics.mean(entry.order for entry in entries[:100])
    print(
        f"{kind}: {len(entries)} files, F1 mean {statistics.mean(scores):.4f}, median {statistics.median(scores):.4f}, "
        f"worst {min(scores):.4f}; order {order:.4f}"
    )
    for entry in sorted(entries, key=lambda entry: entry.f1)[:SHOWN]:
        print(f"  {entry.f1:.3f} {entry.name}: only ours {entry.only_ours}, only theirs {entry.only_theirs}")


if __name__ == "__main__":
    main()
