"""MinHash's keys: words and bands beside datatrove 0.10.1's, and XXH64 beside xxhash 3.8.1's; texts of numbers."""

import random

import numpy as np
import pytest
from document_tables import table_of
from duplicates import removed_of, signed

from lifecycle.data.compiled_minhash import lay_out, xxh64
from lifecycle.data.measures.minhash import MOST_CHARS, simplified
from lifecycle.data.ngrams import Hashes

WORDS = (
    *(
        "the",
        "a",
        "of",
        "river",
        "stone",
        "light",
        "under",
        "water",
        "moves",
        "slow",
        "garden",
        "wall",
        "paper",
        "open",
    ),
    *("every", "night", "small", "house", "green", "early", "winter"),
)


def laid_out(text: str, most_chars: int = MOST_CHARS, are_alike: bool = True) -> list[str]:
    data = np.frombuffer(text.encode(), np.uint8)
    words, begins = np.empty(2 * len(data) + 8, np.uint8), np.empty(len(data) + 2, np.int64)
    num, _ = lay_out(data, simplified(), most_chars, are_alike, words, begins)
    return [bytes(words[begins[at] : begins[at + 1] - 1]).decode() for at in range(num)]


def bands(*texts: str) -> Hashes:
    return np.array(signed(table_of(texts))["bands"].to_pylist(), np.uint64)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0xEF46DB3751D8E999), (1, 0x8A4127811B21E730), (4, 0x542620E3A2A92ED1), (7, 0xA8AE77473CA95CC9),
        (8, 0x814C43EB29646E14), (13, 0x53D6C5082A404CE1), (31, 0x68BFA490F8752F55), (32, 0x89614B7813C0BD7F),
        (33, 0x089471A1194BE96A), (63, 0xDDB4F290C77F8618), (64, 0x9AB06FFB4EEE2F86), (100, 0x1A043841D8484FA7),
    ],
)  # fmt: skip
def test_hashes_are_xxhashs(size: int, expected: int) -> None:
    assert int(xxh64(np.arange(101, dtype=np.uint8), 1, size + 1)) == expected


@pytest.mark.parametrize(
    ("seed", "size", "changed", "shared"),
    [
        (0, 60, 0.05, [0, 1, 2]), (1, 200, 0.02, [7]), (2, 200, 0.04, []), (3, 400, 0.03, [2]),
        (4, 12, 0.05, list(range(14))), (5, 120, 0.04, [2, 3, 6, 8, 9, 10, 12]),
    ],
)  # fmt: skip
def test_two_texts_share_the_bands_that_datatrove_finds(
    seed: int, size: int, changed: float, shared: list[int]
) -> None:
    chance = random.Random(seed)
    words = chance.choices(WORDS, k=size)
    others = [chance.choice(WORDS) if chance.random() < changed else word for word in words]
    one, other = bands(" ".join(words), " ".join(others))
    assert np.flatnonzero(one == other).tolist() == shared


def test_accents_case_and_numbers_make_no_difference() -> None:
    text = "Été 2024: the café's 3.5 km walk, from Zürich_Nord past 1,200 trees to \uff12\uff10 houses (and back!)."
    plain = "ete 1 the cafe s 7 km walk from zurich nord past 9 trees to 3 houses and back"
    one, other = bands(text, plain)
    assert (one == other).all()
    assert laid_out(text) == plain.translate(str.maketrans("1793", "0000")).split()
    assert laid_out("e\u0301te\u0301 3,5 v1 1st, 7.") == ["ete", "0", "v1", "1st", "0"]
    assert laid_out("1.5 a 20", are_alike=False) == ["15", "a", "20"]
    assert laid_out("Ⱥ 日本語 𐐀 ...") == ["ⱥ", "日本語", "𐐨"] and laid_out(" ... \u0301") == []


def test_a_long_text_is_looked_at_as_far_as_its_first_characters() -> None:
    assert laid_out("äöü ab cd", most_chars=6) == ["aou", "ab"] and laid_out("äöü ab", most_chars=6) == ["aou", "ab"]


def test_texts_that_differ_in_numbers_are_told_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    chance = random.Random(0)
    tables = [[str(chance.randrange(10_000)) for _ in range(100)] for _ in range(60)]
    # Reports whose words are the same meet in each band: more of them than are all compared with each other.
    words = chance.choices(WORDS, k=120)
    reports = [[*words[:4], *(part for at in range(29) for part in (row[at], *words[4 * at :][:4]))] for row in tables]
    for rows in (tables, reports):
        copies = [[*row[:44], "0", *row[45:]] for row in rows]
        texts = [" ".join(row) for row in rows + copies]
        removed = removed_of(table_of(texts), tmp_path_factory.mktemp("run"))
        assert removed["ordinal"].to_pylist() == list(range(60, 120))
