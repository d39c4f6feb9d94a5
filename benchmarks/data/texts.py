"""Text for benchmarks: documents made of the sentences of real ones, as many megabytes as asked.

A tenth of them are near-copies of one of the last thousand, a fiftieth exact copies. Same seed, same bytes.
"""

import json
import random
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

_SENTENCES = re.compile(r"(?<=[.!?])\s+")
NEAR, EXACT = 0.1, 0.02  # shares of copies


def write_texts(real: Path, out: Path, num_bytes: int, seed: int = 0) -> int:
    """Writes JSON Lines of about so many bytes of text, of the `text` in those of `real`; returns how many lines."""
    documents = [json.loads(line)["text"] for line in real.read_text(encoding="utf-8").split("\n") if line]
    written = num = 0
    with open(out, "w", encoding="utf-8") as file:
        for text in _recombined(documents, random.Random(seed)):
            file.write(json.dumps({"text": text}) + "\n")
            written, num = written + len(text.encode()), num + 1
            if written >= num_bytes:
                return num
    raise AssertionError("texts have no end")


def _recombined(documents: list[str], chance: random.Random) -> Iterator[str]:
    sentences = [sentence for text in documents for sentence in _SENTENCES.split(text)]
    sizes = [len(_SENTENCES.split(text)) for text in documents]
    recent: deque[list[str]] = deque(maxlen=1000)
    while True:
        drawn = chance.random()
        if recent and drawn < NEAR + EXACT:
            own = list(chance.choice(recent))
            if drawn < NEAR:
                own[chance.randrange(len(own))] = chance.choice(sentences)
        else:
            own = chance.choices(sentences, k=chance.choice(sizes))
            recent.append(own)
        yield " ".join(own)
