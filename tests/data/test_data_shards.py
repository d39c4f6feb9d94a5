"""Token shards: every document framed once, in order, found by index; damage is named."""

import copy
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifecycle.core.progress import Silent
from lifecycle.data.shards import ShardError, TokenShards, write_token_shards
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

KEPT = [f"document {i}\n" * (i % 7) for i in range(25)]
HELDOUT = ["held out \u20ac", "<s> typed </s>"]


class WideBytes(ByteTokenizer):
    """Bytes in a vocabulary that needs uint32."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = 70_000


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, texts in (("kept-00000", KEPT[:10]), ("kept-00001", KEPT[10:]), ("heldout-00000", HELDOUT)):
        table = {"text": texts, "source": ["code" if len(text) % 2 else "prose" for text in texts]}
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    pq.write_table(pa.table({"text": ["never"]}), folder / "removed-00000.parquet")
    return folder


@pytest.fixture
def shards(documents: Path, tmp_path: Path) -> Path:
    write_token_shards(documents, ByteTokenizer(), tmp_path / "shards", Silent(), docs_per_shard=8)
    return tmp_path / "shards"


@pytest.mark.parametrize(("kind", "dtype"), [(ByteTokenizer, "uint16"), (WideBytes, "uint32")])
def test_a_document_is_its_text_framed_once(documents: Path, tmp_path: Path, kind: type, dtype: str) -> None:
    tokenizer = kind()
    stats = write_token_shards(documents, tokenizer, tmp_path / "out", Silent(), docs_per_shard=8)
    assert stats["dtype"] == dtype
    for split, texts in (("train", KEPT), ("heldout", HELDOUT)):
        reader = TokenShards(tmp_path / "out", split, tokenizer)
        assert len(reader) == len(texts)
        for i in np.random.default_rng(0).permutation(len(texts)):
            ids = reader[int(i)].tolist()
            assert ids == [tokenizer.bos_id, *tokenizer.encode(texts[i]), tokenizer.eos_id]
            assert reader.lengths[i] == len(ids)
            assert reader[int(i)].dtype == dtype
        size = sum(len(text.encode()) for text in texts)
        assert reader.num_tokens == size + 2 * len(texts) == stats["splits"][split]["tokens"]
        assert reader.text_bytes == size
    assert len(list((tmp_path / "out").glob("train-*.array_record"))) == 4


def test_a_sources_documents_are_those_of_its_name_in_their_order(shards: Path) -> None:
    tokenizer, whole = ByteTokenizer(), TokenShards(shards)
    for name, odd in (("code", 1), ("prose", 0)):
        texts = [text for text in KEPT if len(text) % 2 == odd]
        own = whole.of_source(name)
        assert [tokenizer.decode(own[number].tolist()) for number in range(len(own.lengths))] == texts
        assert own.lengths.tolist() == [len(text.encode()) + 2 for text in texts]
        assert own.index != whole.index
    with pytest.raises(ShardError, match=r"no document of source 'cod' in train; there are .*code"):
        whole.of_source("cod")


def test_the_same_again_gives_the_same_bytes(documents: Path, tmp_path: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=295), KEPT, tmp_path / "tokenizer", seed=0)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    for name in ("a", "b"):
        write_token_shards(documents, tokenizer, tmp_path / name, Silent())
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    records = ["heldout-00000.array_record", "train-00000.array_record"]
    arrays = [f"{split}.{what}.npy" for split in ("heldout", "train") for what in ("lengths", "sources")]
    assert names == sorted([*records, *arrays, "index.json"])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert tokenizer.decode(TokenShards(tmp_path / "a")[24].tolist()) == KEPT[24]


def test_progress_counts_documents(documents: Path, tmp_path: Path) -> None:
    class Recorder(Silent):
        seen: list[int]

        def start(self, stage: str, total: int | None = None) -> None:
            self.seen = [total or 0]

        def update(self, done: int, total: int | None = None, **metrics: object) -> None:
            self.seen.append(done)

    progress = Recorder()
    write_token_shards(documents, ByteTokenizer(), tmp_path / "out", progress, docs_per_shard=10)
    assert progress.seen == [27, 10, 20, 25, 27]


def test_a_copy_reads_the_same(shards: Path) -> None:
    reader = TokenShards(shards, "heldout")
    assert copy.copy(reader)[1].tolist() == reader[1].tolist()
    for document in (-1, 2):
        with pytest.raises(IndexError, match=f"document {document} of 2"):
            reader[document]


def test_another_tokenizer_is_refused(shards: Path) -> None:
    with pytest.raises(ShardError, match=r"index\.json: made by tokenizer .* \(261 words\).*write the shards again"):
        TokenShards(shards, tokenizer=WideBytes())


def test_a_shard_that_is_cut_short_or_missing_is_named(shards: Path) -> None:
    path = shards / "train-00002.array_record"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ShardError, match=r"train-00002\.array_record: \d+ bytes, index\.json says \d+ bytes"):
        TokenShards(shards)
    path.unlink()
    with pytest.raises(ShardError, match=r"train-00002\.array_record: missing"):
        TokenShards(shards)


def test_lengths_that_do_not_fit_are_named(shards: Path) -> None:
    path = shards / "train.lengths.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(ShardError, match=r"train\.lengths\.npy: 24 documents, index\.json says 25"):
        TokenShards(shards)
    path.write_bytes(b"")
    with pytest.raises(ShardError, match=r"train\.lengths\.npy: cannot be read"):
        TokenShards(shards)


def test_a_folder_without_a_whole_index_is_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no token shards here"):
        TokenShards(tmp_path)
    with pytest.raises(ShardError, match="no split 'test'; there are train, heldout"):
        TokenShards(shards, "test")
    index = (shards / "index.json").read_text()
    assert json.loads(index)["tokenizer_fingerprint"] == ByteTokenizer().fingerprint
    (shards / "index.json").write_text(index[:50])
    with pytest.raises(ShardError, match=r"index\.json: not valid JSON"):
        TokenShards(shards)


def test_no_kept_document_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no kept document to train on"):
        write_token_shards(tmp_path, ByteTokenizer(), tmp_path / "out", Silent())
