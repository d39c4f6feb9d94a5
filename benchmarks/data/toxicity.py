"""Lists and classifiers against what is toxic: what they hit in clean documentation, and what they find in posts.

    npm pack naughty-words profane-words      # lists: package/en.json, package/words.json
    git clone https://github.com/t-davidson/hate-speech-and-offensive-language   # data/labeled_data.csv
    python -m benchmarks.data.toxicity LIST.json [LIST.json ...] --posts labeled_data.csv --clean FOLDER [FOLDER ...]

The posts (Davidson et al. 2017, arXiv:1703.04009) are 24,783 from Twitter, drawn because they have a word of a list, so
those that are clean are hard ones; three annotators or more labelled each as hate speech, offensive or neither. Prints
for each list the share of documents with a word of it and the words that hit most, in clean documents and in posts; the
held-out figures of classifiers of both labels, over some seeds; and how many clean documents and harmless sentences
these call toxic.
"""

import argparse
import csv
import html
import json
import random
import re
import statistics
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.data.plants import LARGEST, SMALLEST, files_in
from lifecycle.data.config import DataConfig
from lifecycle.data.measures.classifier import read_classifier, score
from lifecycle.data.measures.classifier_training import train_classifier
from lifecycle.data.measures.unwanted import unwanted_step
from lifecycle.data.ngrams import word_hashes
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.raw import RawDocument, raw_batch
from lifecycle.data.reading.sources import list_files

MARKS = re.compile(r"[^\w\s'.-]")
HATE, OFFENSIVE, NEITHER = range(3)
HARMLESS = (
    "Scunthorpe United play Penistone at Cockfosters, and Dick Clark of Middlesex has lunch in Essex.",
    "Kill the process with kill -9; the killer app hangs and its children die as zombies.",
    "The master database replicates to a slave, and the slave never writes to its master.",
    "Assess the class, pass the assertion, and grant the assassin's creed package mass storage.",
    "The breast cancer screening unit examines the uterus and the anus of the patient.",
    "Abort the job, execute the child and blow away the dead branch before you strip the binary.",
    "The cock crowed, the ass brayed, the bitch had a litter, and a pair of great tits sat in the tree.",
    "Sex is recorded as male or female; sexual reproduction needs two gametes.",
)


def labelled(path: Path) -> list[tuple[str, int]]:
    """Texts of the posts, and their labels."""
    with open(path, encoding="utf-8", newline="") as file:
        return [(html.unescape(row["tweet"]), int(row["class"])) for row in csv.DictReader(file)]


def clean_texts(folders: list[Path], num: int, root: Path) -> list[str]:
    """The texts of so many files drawn from the folders in turn."""
    chance, folder = random.Random(0), root / "clean"
    folder.mkdir()
    for own in folders:
        files = files_in(own)
        for file in chance.sample(files, min(len(files), num // len(folders))):
            if SMALLEST <= file.stat().st_size <= LARGEST:
                (folder / f"{len(list(folder.iterdir())):06d}-{file.name}").symlink_to(file.resolve())
    config = DataConfig.model_validate({"sources": [{"name": "clean", "path": str(folder)}]})
    items = (item for file in list_files(config) for item in extract_file(file, config.sources[0], LARGEST * 10))
    return [item.text for item in items if isinstance(item, RawDocument)]


def measure_list(name: str, words: list[str], texts: dict[str, list[str]], root: Path) -> None:
    """Prints what the step `unwanted` counts of a list."""
    path = root / f"{name}.txt"
    path.write_text("\n".join(words), "utf-8")
    one = {"name": "listed", "path": str(path), "max": 0}
    config = DataConfig.model_validate({"sources": [{"name": "texts", "path": "."}], "lists": [one]})
    step = unwanted_step(config)
    known = {int(word_hashes(word)[0]): word for word in words if len(word_hashes(word)) == 1}
    for kind, own in texts.items():
        rows = raw_batch([RawDocument(text, "texts", str(at), "", "text", {}, 0) for at, text in enumerate(own)])
        measured = step.measure(rows)
        counts, shares = measured["listed_count"].to_numpy(), measured["listed_share"].to_numpy()
        hits = Counter(known[number] for text in own for number in word_hashes(text).tolist() if number in known)
        of = ", ".join(f"> {limit:g}: {float((shares > limit).mean()):.2%}" for limit in (0, 0.001, 0.01))
        print(f"{name}, {len(words)} entries, {kind}: {len(own)} texts, {int(counts.sum())} hits; share of words {of}")
        print(f"    most: {', '.join(f'{word} {num}' for word, num in hits.most_common(12))}")


def measure_classifier(
    name: str, posts: list[tuple[str, int]], bad: set[int], clean: list[str], rounds: int, root: Path, num_good: int = 0
) -> None:
    """Trains on the posts and the first `num_good` of the clean texts, with other seeds, and prints what is found in
    examples held out and in the other clean texts."""
    posts, clean = posts + [(text, NEITHER) for text in clean[:num_good]], clean[num_good:]
    for kind in (True, False):
        rows = [json.dumps({"text": text}) for text, label in posts if (label in bad) == kind]
        (root / f"{name}-{kind}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    found, wrong = [], []
    for seed in range(rounds):
        manifest = train_classifier(
            [root / f"{name}-False.jsonl"], [root / f"{name}-True.jsonl"], root / f"{name}.npz", seed
        )
        found.append(manifest["heldout"])
        scores = score(read_classifier(root / f"{name}.npz"), pa.array(clean))
        wrong.append([float((scores > limit).mean()) for limit in (0.5, 0.9)])
    share = sum(label in bad for _, label in posts) / len(posts)
    print(f"classifier {name}: {share:.1%} of the examples are bad; held out, over {rounds} seeds:")
    for key in found[0]:
        values = [own[key] for own in found]
        print(f"    {key}: median {statistics.median(values):.4g}, from {min(values):.4g} to {max(values):.4g}")
    above = np.median(np.array(wrong), axis=0)
    print(f"    clean documents above 0.5: {above[0]:.2%}, above 0.9: {above[1]:.2%}")
    of_harmless = score(read_classifier(root / f"{name}.npz"), pa.array(HARMLESS))
    for text, value in zip(HARMLESS, of_harmless.tolist(), strict=True):
        print(f"    {value:.2f} {text[:70]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, nargs="+", help="JSON files with an array of words and phrases")
    parser.add_argument("--posts", type=Path, required=True)
    parser.add_argument("--clean", type=Path, nargs="+", required=True)
    parser.add_argument("--num", type=int, default=4000, help="clean documents")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    posts = labelled(arguments.posts)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        clean = clean_texts(arguments.clean, arguments.num, root)
        texts = {
            "clean documents": clean, "harmless sentences": list(HARMLESS),
            "posts, neither": [text for text, label in posts if label == NEITHER],
            "posts, offensive": [text for text, label in posts if label == OFFENSIVE],
            "posts, hate": [text for text, label in posts if label == HATE],
        }  # fmt: skip
        for number, path in enumerate(arguments.lists):
            every = json.loads(path.read_text("utf-8"))
            words = [word for word in every if len(word_hashes(word)) and not MARKS.search(word)]
            print(f"{path}: {len(every) - len(words)} of {len(every)} entries are not of letters: left out")
            measure_list(f"list_{number}_{path.stem}", words, texts, root)
        measure_classifier("offensive or hate", posts, {HATE, OFFENSIVE}, clean, arguments.rounds, root)
        measure_classifier("hate", posts, {HATE}, clean, arguments.rounds, root)
        random.Random(0).shuffle(clean)
        both = "offensive or hate, documents among the good"
        measure_classifier(both, posts, {HATE, OFFENSIVE}, clean, arguments.rounds, root, len(clean) // 2)


if __name__ == "__main__":
    main()
