"""Token shards: every document framed once, shuffled, found by index; damage is named."""

import copy
import errno
import hashlib
import json
import os
import resource
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.progress import Silent
from lifecycle.data import shard_writing, token_parts
from lifecycle.data.shard_writing import write_token_shards
from lifecycle.data.shards import ARRAYS, ShardError, TokenShards, read_index, verify_shards
from lifecycle.data.tagging.engine import Native
from lifecycle.data.tagging.workers import WorkerDiedError
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
        table["id"] = [hashlib.sha256(f"{name}{row}".encode()).hexdigest()[:32] for row in range(len(texts))]
        pq.write_table(pa.table(table), folder / f"{name}.parquet", row_group_size=5)
    pq.write_table(pa.table({"text": ["never"]}), folder / "removed-00000.parquet")
    return folder


def key_of(name: str) -> int:
    """SplitMix64's finaliser of an id's halves, one after the other, in Python's integers."""
    key = 0
    for half in (bytes.fromhex(name)[:8], bytes.fromhex(name)[8:]):
        key ^= int.from_bytes(half, "little")
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            key = ((key ^ (key >> shift)) * factor) % 2**64
        key ^= key >> 31
    return key


def rows_of(documents: Path, split: str) -> list[dict[str, str]]:
    prefix = {"train": "kept", "heldout": "heldout"}[split]
    return [row for path in sorted(documents.glob(f"{prefix}-*")) for row in pq.read_table(path).to_pylist()]


def shuffled(documents: Path, split: str) -> list[dict[str, str]]:
    return sorted(rows_of(documents, split), key=lambda row: key_of(row["id"]))


def texts_in(shards: Path) -> list[str]:
    read = TokenShards(shards)
    return [bytes(read[i][1:-1].tolist()).decode() for i in range(len(read))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def shards(documents: Path, tmp_path: Path) -> Path:
    write_token_shards({"": documents}, ByteTokenizer(), tmp_path / "shards", Silent(), shard_bytes=100)
    return tmp_path / "shards"


@pytest.mark.parametrize(("kind", "dtype"), [(ByteTokenizer, "uint16"), (WideBytes, "uint32")])
def test_a_document_is_its_text_framed_once(documents: Path, tmp_path: Path, kind: type, dtype: str) -> None:
    tokenizer = kind()
    stats = write_token_shards({"": documents}, tokenizer, tmp_path / "out", Silent(), shard_bytes=100)
    assert stats["dtype"] == dtype
    for split, num in (("train", len(KEPT)), ("heldout", len(HELDOUT))):
        rows, reader = shuffled(documents, split), TokenShards(tmp_path / "out", split, tokenizer)
        texts = [row["text"] for row in rows]
        assert len(texts) == num
        assert len(reader) == len(texts)
        for i in np.random.default_rng(0).permutation(len(texts)):
            ids = reader[int(i)].tolist()
            assert ids == [tokenizer.bos_id, *tokenizer.encode(texts[i]), tokenizer.eos_id]
            assert reader.lengths[i] == len(ids)
            assert reader[int(i)].dtype == dtype
        size = sum(len(text.encode()) for text in texts)
        assert reader.num_tokens == size + 2 * len(texts) == stats["splits"][split]["tokens"]
        assert reader.text_bytes == size
        assert [reader.name(i) for i in range(len(texts))] == [row["id"] for row in rows]
        counts = [len(row["text"].encode()) + 2 for row in rows_of(documents, split)]
        assert np.load(tmp_path / "out" / f"{split}.counts.npy").tolist() == counts
    assert len(list((tmp_path / "out").glob("train-*.array_record"))) > 5


def test_a_sources_documents_are_those_of_its_name(documents: Path, shards: Path) -> None:
    tokenizer, whole = ByteTokenizer(), TokenShards(shards)
    for name in ("code", "prose"):
        texts = [row["text"] for row in shuffled(documents, "train") if row["source"] == name]
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
        write_token_shards({"": documents}, tokenizer, tmp_path / name, Silent())
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    records = ["heldout-00000.array_record", "train-00000.array_record"]
    arrays = [f"{split}.{what}.npy" for split in ("heldout", "train") for what in ARRAYS]
    assert names == sorted([*records, *arrays, "index.json"])
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert tokenizer.decode(TokenShards(tmp_path / "a")[24].tolist()) == shuffled(documents, "train")[24]["text"]


def test_tokens_of_characters_that_are_lost_are_counted(documents: Path, tmp_path: Path) -> None:
    """The held-out text has a character and words that the vocabulary has no letters for; the training text none."""
    train_tokenizer(TokenizerConfig(vocab_size=40, byte_fallback=False), KEPT, tmp_path / "tokenizer", seed=0)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    stats = write_token_shards({"": documents}, tokenizer, tmp_path / "out", Silent())
    lost = sum(tokenizer.encode(text).count(0) for text in HELDOUT)
    assert {split: of["unknown_tokens"] for split, of in stats["splits"].items()} == {"train": 0, "heldout": lost}
    assert lost > 2


@pytest.mark.parametrize("unknown", ["[UNK]", "</s>"])
def test_they_are_whatever_the_model_calls_what_is_unknown(documents: Path, tmp_path: Path, unknown: str) -> None:
    """No config names it, and it may be what ends a document: this end is not counted."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "[UNK]", *"abcdefghijklmnopqrtuvwxyz "])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token=unknown, fuse_unk=True))
    made.decoder = tokenizers.decoders.ByteFallback()
    made.add_special_tokens(["<s>", "</s>", "[UNK]"])
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    stats = write_token_shards({"": documents}, tokenizer, tmp_path / "out", Silent())
    lost = sum(tokenizer.encode(text).count(vocabulary[unknown]) for text in HELDOUT)
    assert stats["splits"]["heldout"]["unknown_tokens"] == lost > 2
    assert unknown == "</s>" or tokenizer.decode(tokenizer.encode("2a")) == "[UNK]a"


def test_a_piece_whose_process_dies_twice_ends_the_run_with_what_to_do(documents: Path, tmp_path: Path) -> None:
    class Deadly(Native):
        def results(self, function: Any, work: Any, attempts: int, apart: bool = False) -> Iterator[tuple[int, Any]]:
            del function, work, attempts, apart
            yield 0, WorkerDiedError("the process ended")

    with pytest.raises(ValueError, match=r"tokens, train-part-00000: the process ended; with fewer data\.workers"):
        write_token_shards({"": documents}, ByteTokenizer(), tmp_path / "out", Silent(), Deadly(1))


def test_progress_counts_documents(documents: Path, tmp_path: Path) -> None:
    class Recorder(Silent):
        def __init__(self) -> None:
            self.seen = list[str | int]()

        def start(self, stage: str, total: int | None = None) -> None:
            self.seen += [stage, total or 0]

        def update(self, done: int, total: int | None = None, **metrics: object) -> None:
            self.seen.append(done)

    progress = Recorder()
    write_token_shards({"": documents}, ByteTokenizer(), tmp_path / "out", progress, num_shards=1, shard_bytes=1)
    assert progress.seen[:10] == ["tokens", 27, 5, 10, 15, 20, 25, 27, "shards", 27]
    assert (progress.seen[10], progress.seen[-1]) == (25, 27)


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
        write_token_shards({"": tmp_path}, ByteTokenizer(), tmp_path / "out", Silent())


def test_any_number_of_processes_writes_the_same_bytes(documents: Path, tmp_path: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=295), KEPT, tmp_path / "tokenizer", seed=0)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    for workers in (1, 2):
        with Native(workers) as engine:
            write_token_shards({"": documents}, tokenizer, tmp_path / str(workers), Silent(), engine, shard_bytes=1)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize("num_shards", [1, 3, 40])
def test_the_order_is_the_same_in_any_number_of_shards(
    documents: Path, shards: Path, tmp_path: Path, num_shards: int
) -> None:
    """Forty have empty ones among them; one has many ranges of keys."""
    for name, size in (("small", 40), ("large", 1 << 20)):
        out = tmp_path / name
        write_token_shards({"": documents}, ByteTokenizer(), out, Silent(), num_shards=num_shards, shard_bytes=size)
        entries = read_index(out)["splits"]["train"]["shards"]
        assert len(entries) == len(list(out.glob("train-*.array_record"))) == num_shards
        assert sum(shard["documents"] for shard in entries) == 25
        assert texts_in(out) == texts_in(shards)
        verify_shards(out)


def test_documents_are_shuffled_over_all_shards(tmp_path: Path) -> None:
    """Each shard has of both files and sources what chance gives it, and a document's place says nothing of the one
    before: 4,000 documents, 20 shards, bounds of five deviations."""
    for number, source in enumerate(("first", "second")):
        names = [hashlib.blake2b(f"{source} {i}".encode(), digest_size=16).hexdigest() for i in range(2000)]
        table = {"id": names, "text": [f"{number * 2000 + i}" for i in range(2000)], "source": [source] * 2000}
        pq.write_table(pa.table(table), tmp_path / f"kept-{number:05d}.parquet", row_group_size=100)
    out = tmp_path / "out"
    write_token_shards({"": tmp_path}, ByteTokenizer(), out, Silent(), num_shards=20, shard_bytes=1000)
    order = np.array([int(text) for text in texts_in(out)])
    assert sorted(order) == list(range(4000))
    sizes = [shard["documents"] for shard in read_index(out)["splits"]["train"]["shards"]]
    assert max(abs(size - 200) for size in sizes) < 5 * np.sqrt(200)
    for own in np.split(order, np.cumsum(sizes)[:-1]):
        assert abs((own < 2000).sum() - len(own) / 2) < 5 * np.sqrt(len(own)) / 2
    for lag in (0, 1):
        places = np.arange(4000 - lag) if lag == 0 else order[:-1]
        assert abs(np.corrcoef(places, order[lag:])[0, 1]) < 5 / np.sqrt(4000)


@given(
    st.lists(st.lists(st.tuples(st.text(max_size=30), st.sampled_from("abc")), max_size=9), max_size=4),
    st.integers(1, 200),
)
@settings(max_examples=40, deadline=None)
def test_every_document_is_found_however_shards_are_cut(files: list[list[tuple[str, str]]], shard_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, file in enumerate([*files, [("last", "z")]]):
            table = {"id": [hashlib.md5(f"{number} {row}".encode()).hexdigest() for row in range(len(file))]}
            table |= {"text": pa.array([text for text, _ in file], pa.string()), "source": [own for _, own in file]}
            schema = pa.schema([(column, pa.string()) for column in table])
            pq.write_table(pa.table(table, schema), folder / f"kept-{number:05d}.parquet", row_group_size=2)
        write_token_shards({"": folder}, ByteTokenizer(), folder / "out", Silent(), shard_bytes=shard_bytes)
        read, wanted = TokenShards(folder / "out"), shuffled(folder, "train")
        assert texts_in(folder / "out") == [row["text"] for row in wanted]
        assert [read.name(i) for i in range(len(read))] == [row["id"] for row in wanted]
        for source, own in read.domains().items():
            assert own.tolist() == [i for i, row in enumerate(wanted) if row["source"] == source]


@pytest.mark.parametrize(
    ("module", "name", "shard_bytes"), [(token_parts, "_read", 1), (shard_writing, "_merged", 1 << 20)]
)
def test_a_run_that_was_stopped_goes_on_with_what_is_missing(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, shard_bytes: int
) -> None:
    """In the first pass, of six parts, and in the second, of six ranges."""
    work, seen = getattr(module, name), list[object]()

    def interrupted(*arguments: Any) -> Any:
        seen.append(arguments)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return work(*arguments)

    def write(out: str) -> None:
        write_token_shards(
            {"": documents}, ByteTokenizer(), tmp_path / out, Silent(), num_shards=5, shard_bytes=shard_bytes
        )

    write("whole")
    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("out")
    with pytest.raises(ShardError, match="no token shards here"):
        TokenShards(tmp_path / "out")
    write("out")
    assert len(seen) == 4 + 3  # of six: three were there
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "name",
    [
        "parts/train-part-00000.records", "parts/train-part-00000.counts.npy", "parts/train-part-00000.json",
        "parts/heldout-00000.documents.npy", "parts/train-00001.json", "train-00001.array_record",
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_gone", [False, True])
def test_a_file_that_is_cut_short_or_gone_is_written_again(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_gone: bool
) -> None:
    """As a machine may leave it that lost power, or a run that was killed while it deleted the parts."""
    monkeypatch.setattr(shard_writing, "write_text", stop_at_index)
    with pytest.raises(KeyboardInterrupt):
        write_token_shards({"": documents}, ByteTokenizer(), tmp_path / "out", Silent(), num_shards=2)
    monkeypatch.undo()
    if is_gone:
        (tmp_path / "out" / name).unlink()
    else:
        os.truncate(tmp_path / "out" / name, 40)
    for out in ("out", "whole"):
        write_token_shards({"": documents}, ByteTokenizer(), tmp_path / out, Silent(), num_shards=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_is_an_error_of_the_system(documents: Path, tmp_path: Path) -> None:
    """Not of ArrayRecord: the command line knows what to say of it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-00000.array_record.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_token_shards({"": documents}, ByteTokenizer(), tmp_path / "out", Silent())
    assert caught.value.errno == errno.ENOSPC


def test_an_array_that_does_not_fit_is_one_too(tmp_path: Path) -> None:
    """With its number, which NumPy leaves out where an array fits in part."""
    table = {"text": ["a"] * 3000, "source": ["a"] * 3000, "id": [f"{number:032x}" for number in range(3000)]}
    pq.write_table(pa.table(table), tmp_path / "kept-00000.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_token_shards({"": tmp_path}, ByteTokenizer(), tmp_path / "out", Silent())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG


def test_what_another_tokenizer_has_written_is_written_again(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writing, "write_text", stop_at_index)
    with pytest.raises(KeyboardInterrupt):
        write_token_shards({"": documents}, WideBytes(), tmp_path / "out", Silent(), shard_bytes=1)
    monkeypatch.undo()
    for name in ("out", "whole"):
        write_token_shards({"": documents}, ByteTokenizer(), tmp_path / name, Silent(), shard_bytes=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def stop_at_index(path: Path, text: str) -> None:
    if path.name == "index.json":
        raise KeyboardInterrupt
    path.write_text(text)


def test_memory_is_that_of_a_part_however_many_there_are(tmp_path: Path) -> None:
    """Also in one shard: 8 and 32 parts of 100 kB."""
    peaks = []
    for num in (8, 32):
        folder = tmp_path / str(num)
        folder.mkdir()
        names = [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(10 * num)]
        table = {"id": names, "text": ["ten thousand" * 833] * len(names), "source": ["a"] * len(names)}
        pq.write_table(pa.table(table), folder / "kept-00000.parquet", row_group_size=5, use_dictionary=False)
        tracemalloc.start()
        options = {"num_shards": 1, "shard_bytes": 100_000}
        write_token_shards({"": folder}, ByteTokenizer(), folder / "out", Silent(), **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(TokenShards(folder / "out")) == 10 * num
    assert peaks[1] < 1.25 * peaks[0]


def test_more_shards_than_files_may_be_open_are_read(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifecycle.data.shards.OPEN_SHARDS", 2)
    write_token_shards({"": documents}, ByteTokenizer(), tmp_path / "out", Silent(), shard_bytes=1)
    read, rows = TokenShards(tmp_path / "out"), shuffled(documents, "train")
    for i in np.random.default_rng(1).permutation(25):
        assert bytes(read[int(i)][1:-1].tolist()).decode() == rows[i]["text"]


def test_a_large_corpus_has_larger_shards(documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writing, "MOST_PARTS", 2)
    write_token_shards({"": documents}, ByteTokenizer(), tmp_path / "out", Silent(), shard_bytes=1)
    assert len(read_index(tmp_path / "out")["splits"]["train"]["shards"]) <= 3


def test_a_changed_byte_is_found_where_it_is_read_and_by_the_checksums(shards: Path) -> None:
    verify_shards(shards)
    path, text = shards / "train-00000.array_record", texts_in(shards)[0]
    content = bytearray(path.read_bytes())
    content[content.index(text.encode("utf-16-le"))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=rf"{path.name}: document 0 is damaged .*run the tokens stage again"):
        TokenShards(shards)[0]
    with pytest.raises(ShardError, match=rf"{path.name}: not as index\.json says"):
        verify_shards(shards)
    (shards / "train.ids.npy").unlink()
    with pytest.raises(ShardError, match=rf"{path.name}, train\.ids\.npy: not as"):
        verify_shards(shards)
