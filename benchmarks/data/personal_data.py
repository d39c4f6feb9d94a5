"""How much of planted personal data is found, and how much of what is found is none.

    python -m benchmarks.data.personal_data TEXTS.jsonl [--num 500] [--seed 0]

Plants items and as many look-alikes into the texts, between their sentences, by each of two writers
(`personal_plants.py`): the rules were made with the first in view, not with the second. An item is found if a span of
its kind covers it; what is found elsewhere, on look-alikes, on other parts of plants or in the texts between them, is
wrong. What the texts hold themselves is masked before and printed, so that one can read it.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa

from benchmarks.data.personal_plants import KINDS, Plant, plants
from lifecycle.data.personal.pii import MaskPii


def audited(texts: list[str], step: MaskPii) -> tuple[pa.RecordBatch, float]:
    num = len(texts)
    columns = {
        "text": texts,
        "meta": ["{}"] * num,
        "format": ["text"] * num,
        "language": ["en"] * num,
        "url": [None] * num,
        "path": ["p"] * num,
    }
    batch = pa.record_batch([pa.array(column, pa.string()) for column in columns.values()], list(columns))
    start = time.process_time()
    return step(batch), time.process_time() - start


def planted(texts: list[str], found: list[Plant], seed: int) -> tuple[list[str], list[list[tuple[int, int, Plant]]]]:
    """The texts with a plant between two sentences here and there, and where its value is."""
    chance = random.Random(seed)
    pieces: list[list[str | Plant]] = [[*re.split(r"(?<=[.!?]\s)", text)] for text in texts]
    for plant in found:
        own = chance.choice(pieces)
        own.insert(chance.randint(0, len(own)), plant)
    results, places = [], []
    for own in pieces:
        text, marks = "", []
        for piece in own:
            if isinstance(piece, Plant):
                text += " "
                begin = len(text) + piece.sentence.index(piece.value)
                marks.append((begin, begin + len(piece.value), piece))
                text += piece.sentence + " "
            else:
                text += piece
        results.append(text)
        places.append(marks)
    return results, places


def report(writer: int, texts: list[str], num: int, seed: int) -> None:
    chosen = list(plants(writer, num, seed))
    documents, places = planted(texts, chosen, seed)
    spans = audited(documents, MaskPii(kept=KINDS))[0]["pii_spans"].to_pylist()
    total, hit, wrong = Counter[str](), Counter[str](), Counter[str]()
    misses, errors = [], []
    for text, marks, own in zip(documents, places, spans, strict=True):
        used = set[int]()
        for begin, end, plant in marks:
            if plant.kind is None:
                continue
            total[plant.kind] += 1
            covering = [
                at for at, span in enumerate(own)
                if span["kind"] == plant.kind and span["begin"] <= begin and span["end"] >= end
            ]  # fmt: skip
            hit[plant.kind] += bool(covering)
            used.update(covering)
            if not covering:
                misses.append(f"  missed {plant.kind}/{plant.form}: {text[max(0, begin - 25) : end + 12]!r}")
        for at, span in enumerate(own):
            if at not in used:
                wrong[span["kind"]] += 1
                place = text[max(0, span["begin"] - 25) : span["end"] + 12]
                errors.append(f"  wrong {span['kind']}/{span['rule']}: {place!r}")
    num_items = sum(total.values())
    print(f"writer {writer + 1}, seed {seed}: {num_items} items, {len(chosen) - num_items} look-alikes")
    for kind in (*KINDS, "all"):
        found, planned, bad = (sum(c.values()) if kind == "all" else c[kind] for c in (hit, total, wrong))
        recall, precision = found / planned, found / max(found + bad, 1)
        print(f"  {kind:12} recall {recall:.3f} ({found}/{planned})  precision {precision:.3f} ({bad} wrong)")
    print("\n".join(misses + errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    texts = [json.loads(line)["text"] for line in arguments.texts.read_text(encoding="utf-8").splitlines()]
    audited(texts[:1], MaskPii())  # compiles
    masked, seconds = audited(texts, MaskPii())
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} texts, {size:.1f} MB, {size / seconds:.0f} MB per CPU-second")
    own = Counter(span["rule"] for spans in masked["pii_spans"].to_pylist() for span in spans)
    print(f"in the texts themselves, masked before: {dict(own)}")
    for writer in range(2):
        report(writer, masked["text"].to_pylist(), arguments.num, arguments.seed)


if __name__ == "__main__":
    main()
