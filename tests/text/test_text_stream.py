"""A stream of text pieces is the text, and no piece ends inside a character."""

import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.text.stream import StreamDecoder
from lifecycle.text.tokenizer import Tokenizer, load_tokenizer


def stream(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    decoder = StreamDecoder(tokenizer, () if skip_special else tokenizer.special_ids.values())
    return [*(decoder.feed(i) for i in ids), decoder.finish()]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_any_ids_stream_to_their_text(tokenizer: Tokenizer, data: st.DataObject, skip_special: bool) -> None:
    """Random ids are mostly invalid UTF-8: what is held back and what is given up must still be `decode`'s."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert "".join(stream(tokenizer, ids, skip_special)) == tokenizer.decode(ids, skip_special)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_of_a_text_are_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_an_unfinished_character_is_held_back_until_it_is_certain(bytes_folder: Path) -> None:
    decoder = StreamDecoder(load_tokenizer(bytes_folder))
    assert [decoder.feed(byte) for byte in "\u20ac".encode()] == ["", "", "\u20ac"]
    assert [decoder.feed(byte) for byte in (0xE2, 0x82)] == ["", ""]
    assert decoder.feed(ord("a")) == "\ufffda"
    assert [decoder.feed(0xF0), decoder.finish()] == ["", "\ufffd"]


@pytest.fixture(scope="module")
def prefix_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A model that puts a space before every text, as Llama 2's does."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to train on, and more words"] * 20), model_writer=model, vocab_size=290,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("prefix") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return load_tokenizer(path)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="some words\u20ac", max_size=20), data=st.data())
def test_the_space_before_a_text_is_taken_away_once(
    prefix_tokenizer: Tokenizer, text: str, data: st.DataObject
) -> None:
    ids = prefix_tokenizer.encode(text)
    assert "".join(stream(prefix_tokenizer, ids)) == prefix_tokenizer.decode(ids) == text
    ids = data.draw(st.lists(st.integers(0, prefix_tokenizer.vocab_size - 1), max_size=20))
    assert "".join(stream(prefix_tokenizer, ids)) == prefix_tokenizer.decode(ids)
