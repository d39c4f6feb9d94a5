"""The outlook: what is measured on a sample is scaled by bytes, and a sample that says nothing is refused."""

from pathlib import Path

import pytest
from document_tables import data_config

from lifecycle.core.config import ConfigError
from lifecycle.data.inspecting import outlook
from lifecycle.data.inspecting.outlook import SELECT, outlook_of
from lifecycle.data.shard_writing import SHARD_BYTES
from lifecycle.data.tagging.partitions import READ
from tests.data.test_data_pipeline import essay


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(240):
        (folder / f"{number:03d}.txt").write_text(essay(number // 2 if number % 20 == 19 else number))
    return folder


def test_a_corpus_a_thousand_times_as_large_takes_a_thousand_times_as_much(corpus: Path) -> None:
    config = data_config(str(corpus), partition_bytes=20_000)
    size = sum(path.stat().st_size for path in corpus.iterdir())
    found = outlook_of(config, 1000 * size)
    assert found.sample_bytes == size and found.num_bytes == 1000 * size  # a small corpus is its own sample
    assert found.sample_documents == 240 and found.num_documents == 240_000
    assert 180_000 < found.num_kept < 240_000
    assert found.num_partitions >= 10_000 and found.shard_memory_bytes == SHARD_BYTES
    assert set(found.disk_bytes) == {"partitions", "tagged", "documents", "token shards"}
    assert found.cpu_s[READ] > 0 and found.cpu_s["quality"] > 0 and found.cpu_s[SELECT] >= 0
    assert found.cpu_hours * 3600 == pytest.approx(sum(found.cpu_s.values()))
    assert found.rate(READ) == pytest.approx(size / 1000 / found.cpu_s[READ])


def test_a_sample_is_a_part_of_a_large_corpus(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "SAMPLE_BYTES", 200_000)
    found = outlook_of(data_config(str(corpus), partition_bytes=20_000))
    assert 200_000 <= found.sample_bytes < found.num_bytes and found.sample_documents < 240
    assert found.num_documents == pytest.approx(240, rel=0.1)


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(essay(0))
    with pytest.raises(ConfigError, match="1 documents are too few to measure"):
        outlook_of(data_config(str(tmp_path)))
