"""Compiled encoders: the library's ids for every text, whatever the vocabulary and the cache."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lifecycle.text import bulk, compiled_bpe
from lifecycle.text.bulk import bulk_encoder
from lifecycle.text.byte_level import LLAMA3_PATTERN, QWEN2_PATTERN
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.hf_tokenizer import HFTokenizer
from lifecycle.text.interface import Tokenizer as OurTokenizer
from lifecycle.text.sentencepiece_tokenizer import SentencePieceTokenizer, train_sentencepiece

SAMPLE = [
    "It's 1999, and we've SEEN the   cat's    12345 houses; they'll go, won't they?\r\n\r\n  \tThe end. ",
    "def f(x):\n    return  x == 'it''s' # \u00e4\u00f6\u00fc \u4e2d\u6587\u5b57 \u0434\u043e\u043c\u0430\n",
    "aaaaaaaaaaaaaaaa bbbb aaaa abababab  the the the there then thesis\n" * 3,
] * 20
# Characters at which rules differ: case folding, spaces of several kinds, numbers that are no digits, marks, the mark
# that SentencePiece writes for a space, letters newer than a library's Unicode.
ODD = (
    "'sStTrReEvVmMlLdD \u017f\u212a\t\r\n\x0b\x85\xa0\u2028\u3000\u200b\ufeff\x00\u2581"
    "\u00bd\u2167\u0663\u0301\u0915\u093f\u4e2d\U0001f600\U000323b0\U0001e4d0ab1,.<|>"
)
TEXTS = st.lists(st.text(max_size=40) | st.text(ODD, max_size=60) | st.sampled_from(SAMPLE), max_size=6)
KINDS = ("sentencepiece", "gpt2", "llama3", "qwen2", "ignoring")


def byte_level(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN if kind == "qwen2" else LLAMA3_PATTERN), "isolated")
    tokenizer.pre_tokenizer = level if kind == "gpt2" else pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    tokenizer.add_tokens([AddedToken("<|", normalized=False)])
    return tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OurTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")

    def make(kind: str) -> OurTokenizer:
        own = folder / kind
        own.mkdir(exist_ok=True)
        if kind == "sentencepiece":
            if not (own / "tokenizer.model").exists():
                train_sentencepiece(SAMPLE, own, 340, "bpe")
            return SentencePieceTokenizer(own / "tokenizer.model")
        content = json.loads(byte_level(kind).to_str())
        if kind == "ignoring":  # as Llama 3: a whole unit may be a token that no merges lead to
            content["model"]["ignore_merges"] = True
            content["model"]["vocab"]["\u0120SEEN"] = 900
        (own / "tokenizer.json").write_text(json.dumps(content))
        (own / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
        return HFTokenizer(own / "tokenizer.json")

    return make


def as_rows(encoded: bulk.Encoded) -> list[list[int]]:
    return [part.tolist() for part in np.split(encoded.ids, encoded.ends[:-1])] if len(encoded.ends) else []


def framed(tokenizer: OurTokenizer, texts: list[str]) -> list[list[int]]:
    return [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_librarys(made: Callable[[str], OurTokenizer], kind: str) -> None:
    tokenizer = made(kind)
    encode = bulk_encoder(tokenizer)
    assert not hasattr(encode, "func"), "the library encodes"

    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    @example(["", "", "x", ""])
    @example(["'\u017f 'S 'LL 'Re '\u212a it'\u017ft"])
    @example(["a  b", "a\n \n  b", "  \r\n", "\n\n\tx", "   1234567  ,,\n\n;"])
    @example(["a<|end|>b", "plain", "<| <|", "plain"])
    @example(["ab" * 500, " " * 300, "\u4e2d" * 200, "a" * 1000])
    def check(texts: list[str]) -> None:
        assert as_rows(encode(pa.array(texts, pa.string()))) == framed(tokenizer, texts)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_is_cut_as_by_the_library(made: Callable[[str], OurTokenizer], kind: str) -> None:
    tokenizer = made(kind)
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and (code < 0x20000 or not code % 997)]
    texts = [
        "".join(f"a{chr(code)}b {chr(code)}'" for code in codes[at : at + 500]) for at in range(0, len(codes), 500)
    ]
    assert as_rows(bulk_encoder(tokenizer)(pa.array(texts))) == framed(tokenizer, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_cache_changes_nothing(
    made: Callable[[str], OurTokenizer], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_UNITS", 4)
    tokenizer = made(kind)
    encode = bulk_encoder(tokenizer)
    for _ in range(2):
        assert as_rows(encode(pa.array(SAMPLE))) == framed(tokenizer, SAMPLE)


def test_a_slice_of_an_array_is_encoded_as_it_is(made: Callable[[str], OurTokenizer]) -> None:
    tokenizer = made("gpt2")
    texts = pa.array(["first", "<|end|> second", "third one", "fourth"])
    assert as_rows(bulk_encoder(tokenizer)(texts.slice(1, 2))) == framed(tokenizer, ["<|end|> second", "third one"])


def test_a_long_unit_takes_time_in_proportion(made: Callable[[str], OurTokenizer]) -> None:
    encode = bulk_encoder(made("sentencepiece"))
    assert len(encode(pa.array(["a" * 3_000_000])).ids) < 1_500_000  # with quadratic steps it would never end


def changed(change: Callable[[dict], object], folder: Path) -> HFTokenizer:
    content = json.loads(byte_level("gpt2").to_str())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return HFTokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(normalizer={"type": "NFC"}),
        lambda file: file["pre_tokenizer"].update(add_prefix_space=True),
        lambda file: file.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, file["pre_tokenizer"]]}),
    ],
    ids=["normaliser", "prefix", "digits"],
)  # fmt: skip
def test_other_rules_are_left_to_the_library(change: Callable[[dict], object], tmp_path: Path) -> None:
    tokenizer = changed(change, tmp_path)
    texts = ["A\u030a 123", "", "don't"]
    assert as_rows(bulk_encoder(tokenizer)(pa.array(texts))) == framed(tokenizer, texts)


def test_bytes_are_left_to_the_library() -> None:
    tokenizer = ByteTokenizer()
    assert as_rows(bulk_encoder(tokenizer)(pa.array(["", "ab"]))) == framed(tokenizer, ["", "ab"])
    assert not len(bulk_encoder(tokenizer)(pa.array([], pa.string())).ids)


def test_a_unigram_model_is_left_to_the_library(tmp_path: Path) -> None:
    train_sentencepiece(SAMPLE, tmp_path, 330, "unigram")
    tokenizer = SentencePieceTokenizer(tmp_path / "tokenizer.model")
    assert as_rows(bulk_encoder(tokenizer)(pa.array(SAMPLE[:3]))) == framed(tokenizer, SAMPLE[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_in_another_process_encodes_the_same(made: Callable[[str], OurTokenizer], kind: str) -> None:
    tokenizer = made(kind)
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert as_rows(bulk_encoder(copied)(pa.array(SAMPLE[:3]))) == framed(tokenizer, SAMPLE[:3])


def test_the_leftmost_of_equal_pairs_is_joined_first() -> None:
    """Three equal characters: the first two are joined, then the third joins them, though both splits are pairs."""
    merges = np.array([(1, 1, 0, 2), (2, 1, 1, 3), (1, 2, 1, 3)], np.int64)
    symbols = np.full(256, -1, np.int32)
    symbols[ord("a")] = 1
    table = bulk._merges_table(merges, symbols, np.zeros(256, np.int32), 4, is_bytes=True)
    out = np.zeros(8, np.int32)
    num = compiled_bpe.encode_unit(np.frombuffer(b"aaaaa", np.uint8), table, bulk._empty_cache(4), out)
    assert out[:num].tolist() == [2, 3]
