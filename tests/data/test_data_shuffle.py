"""What comparing documents moves: counted by hand on a sample, then by documents, bands and blocks."""

from pathlib import Path

import pytest
from document_tables import raw, stored, tagged

from lifecycle.data.inspecting.shuffle import Likeness, Shuffle, likeness_in


def text(first: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(first, first + count))


def test_documents_with_a_key_in_common_are_measured(tmp_path: Path) -> None:
    texts = [text(0, 40), text(1000, 30), text(0, 40), "...", text(0, 40)]
    stored(tagged([raw(own, path=str(number)) for number, own in enumerate(texts)]), tmp_path)
    found = likeness_in(tmp_path)
    num_bytes = 3 * len(texts[0] + "\n")  # as it is normalised
    assert found == Likeness(4, 3, 2 * 14, 3 * 36 * 8, num_bytes)  # 36 runs of five words; "..." has none


def test_a_corpus_without_likes_or_words_moves_keys_alone(tmp_path: Path) -> None:
    stored(tagged([raw("..."), raw("!", path="q")]), tmp_path)
    assert likeness_in(tmp_path) == Likeness(0, 0, 0, 0, 0)
    moved = Shuffle.of(Likeness(0, 0, 0, 0, 0), 10, bands=2, hashes=1)
    assert moved.disk_bytes == {"keys": 240, "links": 0, "shingles": 0} and moved.candidate_share == 0


@pytest.mark.parametrize("hashes", [1, 2])
def test_bytes_follow_from_documents_bands_and_blocks(hashes: int) -> None:
    found = Likeness(num_documents=100, num_candidates=20, num_links=50, shingle_bytes=8_000, text_bytes=9_000)
    few, more, many = (Shuffle.of(found, num, 14, hashes) for num in (4_000_000, 8_000_001, 4_000_000_000))
    assert (few.num_passes, more.num_passes, many.num_passes, few.candidate_share) == (1, 1, 2, 0.2)  # 1,000 blocks
    assert few.disk_bytes == {"keys": 4_000_000 * 8 * 15, "links": 4_000_000 // 2 * 16, "shingles": 4_000_000 * 80}
    read = 8 * (14 * 2 + hashes * 3)  # an ordinal and a key for each band, an ordinal and two halves of each hash
    assert (few.network_bytes["keys read"], few.network_bytes["blocks"]) == (4_000_000 * read, 0)
    assert (more.network_bytes["keys read"], more.network_bytes["blocks"]) == (8_000_001 * read, 2 * 8_000_001 * read)
    assert many.network_bytes["keys read"] == 2 * 4_000_000_000 * read
    assert few.network_bytes["rows and groups"] == 4_000_000 * (read + 8 * (14 * 3 + hashes * 4))
    assert few.network_bytes["texts of candidates"] == 4_000_000 * 90
    assert few.memory_bytes == 80_000_000
