"""Trained tokenizers: the same again, as their settings say, from a sample that has its share of everything."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
import tokenizers

from lifecycle.core.config import ConfigError, validate
from lifecycle.text import bulk
from lifecycle.text.bulk import bulk_encoder
from lifecycle.text.hf_tokenizer import HFTokenizer
from lifecycle.text.sampling import balanced_chunks, quotas, sample_chunks
from lifecycle.text.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer


def test_training_is_the_same_again_and_whatever_the_order(source_texts: list[str], tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=400, sample_bytes=50_000)
    folders = [tmp_path / name for name in ("a", "b", "c")]
    orders = (source_texts, source_texts, source_texts[::-1])
    stats = [train_tokenizer(config, texts, folder, seed=1) for texts, folder in zip(orders, folders, strict=True)]
    assert stats[0] == stats[1] == stats[2]
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    assert train_tokenizer(config, source_texts, tmp_path / "d", seed=2)["fingerprint"] != stats[0]["fingerprint"]


def test_the_sample_is_bounded_and_from_everywhere() -> None:
    texts = [f"document {i} line {j}\n" * 20 for i in range(50) for j in range(4)]
    sample = sample_chunks(texts, 20_000, seed=3)
    size = sum(len(chunk.encode()) for chunk in sample)
    assert 18_000 < size <= 20_000
    assert len({chunk.split()[1] for chunk in sample}) > 25
    assert sample_chunks(["a\tb"], 100, seed=0) in (["a", "b"], ["b", "a"])


def test_source_compresses_well(sentencepiece_tokenizer: Tokenizer, source_texts: list[str]) -> None:
    """Indentation and line ends are inside pieces: with the library's defaults 600 words give 1.7 bytes a token."""
    num_tokens = sum(map(len, sentencepiece_tokenizer.encode_batch(source_texts)))
    assert sum(len(text.encode()) for text in source_texts) > 2.3 * num_tokens
    assert len(sentencepiece_tokenizer.encode("        ")) == 1
    pieces = [sentencepiece_tokenizer.token_bytes(i) for i in range(sentencepiece_tokenizer.vocab_size)]
    assert any(b" " in piece.strip() for piece in pieces)  # across words
    assert any(piece.strip() and b"\n" in piece for piece in pieces)  # across line ends


def test_digits_words_and_special_tokens_are_settings(source_texts: list[str], tmp_path: Path) -> None:
    settings = {
        "vocab_size": 600,
        "split_digits": False,
        "across_words": False,
        "special_tokens": ["<|tool|>", "<|x|>"],
    }
    texts = [*source_texts, *(f"In 2024 and in 2024 there were {number} of 1000." for number in range(200))]
    stats = train_tokenizer(validate(TokenizerConfig, settings), texts, tmp_path, seed=0)
    own = load_tokenizer(tmp_path)
    assert {"<|tool|>", "<|x|>", "<|im_end|>"} <= set(stats["special_tokens"]) == own.special_ids.keys()
    text = "<|tool|> in 2024\n    of 1000  <|x|>"
    assert own.decode(own.encode(text)) == text and not set(own.encode(text)) & set(own.special_ids.values())
    pieces = [own.token_bytes(i) for i in range(own.vocab_size) if i not in own.special_ids.values()]
    assert b"2024" in {piece.strip() for piece in pieces}
    assert not any(b" " in piece.strip() for piece in pieces)
    json_file = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert json_file.encode("in 2024 of 1000", add_special_tokens=False).ids == own.encode("in 2024 of 1000")
    for wrong, told in (
        ({"special_tokens": ["<|im_end|>"]}, "there already"), ({"special_tokens": ["a b"]}, "special_tokens"),
        ({"kind": "bytes", "split_digits": False}, "split_digits is of a tokenizer that is trained"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            validate(TokenizerConfig, wrong)


@pytest.mark.parametrize("split_digits", [True, False])
def test_byte_level_bpe_is_trained(source_texts: list[str], tmp_path: Path, split_digits: bool) -> None:
    settings = {"kind": "hf", "vocab_size": 700, "split_digits": split_digits, "special_tokens": ["<|tool|>"]}
    texts = [*source_texts, *(f"In 20241 and in 20242 there were {number} of 1000." for number in range(200))]
    folders = [tmp_path / "a", tmp_path / "b"]
    config = validate(TokenizerConfig, settings)
    stats = [train_tokenizer(config, own, folder, 0) for own, folder in zip((texts, texts[::-1]), folders, strict=True)]
    assert stats[0] == stats[1] and stats[0]["vocab_size"] == 700  # whatever the order
    own = load_tokenizer(folders[0])
    assert isinstance(own, HFTokenizer)
    assert list(own.special_ids) == ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|tool|>"]
    assert (own.bos_id, own.eos_id, own.pad_id) == (0, 1, 2)
    for text in (*source_texts, "é ≠ 日本\x00\r\n\t  <|tool|> 2024\n", ""):
        ids = own.encode(text)
        assert own.decode(ids) == text and not set(ids) & set(own.special_ids.values())
    pieces = {own.token_bytes(i).strip() for i in range(own.vocab_size)}
    assert (b"202" in pieces) != split_digits and not any(b" " in piece for piece in pieces)
    rows = [own.encode(text) for text in texts]
    found = bulk_encoder(own)(pa.array(texts))
    assert found.ids.tolist() == [i for row in rows for i in (own.bos_id, *row, own.eos_id)]
    assert bulk._known_pattern(own) is not None  # the compiled loops have encoded them


def test_a_sample_has_its_share_of_each_group() -> None:
    sizes = {"web": 900_000, "code": 90_000, "rare": 1_000, "empty": 0}
    assert quotas(sizes, 99_100, 1) == {"web": 90_000, "code": 9_000, "rare": 100}
    assert quotas(sizes, 61_000, 0) == {"web": 30_000, "code": 30_000, "rare": 1_000}
    half = quotas(sizes, 40_000, 0.5)
    assert half["rare"] == int(40_000 * 1000**0.5 / sum(size**0.5 for size in sizes.values()))
    assert half["web"] / half["code"] == pytest.approx(10**0.5, rel=1e-3)
    assert quotas(sizes, 10**9, 0.3) == {group: size for group, size in sizes.items() if size}
    texts = [(group, f"{group} {number}\n" * 40) for number in range(400) for group in ("web", "code")]
    texts = [text for at, text in enumerate(texts) if text[0] == "web" or at % 20 == 1]
    given = Counter({group: sum(len(text) for own, text in texts if own == group) for group in ("web", "code")})
    chunks = balanced_chunks(texts, given, 8_000, 0, seed=1)
    found = Counter[str]()
    for chunk in chunks:
        found[chunk.split()[0]] += len(chunk)
    assert found["web"] == pytest.approx(4_000, rel=0.2) and found["code"] == pytest.approx(4_000, rel=0.2)
    assert chunks == balanced_chunks(reversed(texts), given, 8_000, 0, seed=1)
    assert sample_chunks(chunks, 8_000, seed=1) == sample_chunks(reversed(chunks), 8_000, seed=1)
    assert sorted(sample_chunks(chunks, 8_000, seed=1)) == sorted(chunks)  # a sample of a sample is that
