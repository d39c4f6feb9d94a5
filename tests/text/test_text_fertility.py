"""Fertility: figures that can be counted by hand, sums that do not depend on the order, and texts without words."""

import random
from collections.abc import Mapping

import pytest

from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.fertility import ALL, BATCH, as_rows, sizes
from lifecycle.text.interface import Tokenizer, TokenizerError


def document(text: str, language: str = "en", source: str = "a") -> Mapping[str, str]:
    return {"text": text, "language": language, "source": source}


def test_bytes_are_one_token_each_and_words_are_counted_by_hand() -> None:
    found = sizes(ByteTokenizer(), [document("It's 2.5 na\u00efve_words"), document("ok", source="b")])
    assert (found[ALL].num_documents, found[ALL].num_words) == (2, 6)  # It s 2 5 naïve_words; ok
    assert found[ALL].bytes_per_token == 1
    assert found["source", "b"].tokens_per_word == 2
    assert found["language", "en"] == found[ALL]
    assert list(found) == [ALL, ("language", "en"), ("source", "a"), ("source", "b")]  # the larger one first


def test_languages_without_blanks_have_no_words_and_spoil_no_source() -> None:
    found = sizes(ByteTokenizer(), [document("\u65e5\u672c\u8a9e\u306e\u6587", "ja"), document("four word text here")])
    assert found["language", "ja"].tokens_per_word is None and found["language", "ja"].bytes_per_token == 1
    assert found["source", "a"].tokens_per_word == 19 / 4 and found["source", "a"].num_tokens == 19 + 15
    assert [row["tokens_per_word"] for row in as_rows(found)] == [4.75, 4.75, None, 4.75]


class Losing(ByteTokenizer):
    """Cannot write `x`."""

    unknown_id = ord("x")


def test_tokens_of_text_that_is_lost_are_counted() -> None:
    """One token for much of it would look like a good vocabulary."""
    found = sizes(Losing(), [document("a x and xx"), document("x", source="b")])
    assert [row["unknown_tokens"] for row in as_rows(found)] == [4, 4, 3, 1]


def test_groups_add_up_whatever_the_order(sentencepiece_tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    documents = [
        document(f"def f{number}(x): return x", draw.choice(("python", "en")), draw.choice("abc"))
        for number in range(2 * BATCH + 3)
    ]
    found = sizes(sentencepiece_tokenizer, documents)
    assert found[ALL].num_tokens == sum(len(sentencepiece_tokenizer.encode(own["text"])) for own in documents)
    for kind in ("language", "source"):
        assert sum((size.num_tokens for group, size in found.items() if group[0] == kind)) == found[ALL].num_tokens
    assert sizes(sentencepiece_tokenizer, documents[::-1]) == found


def test_no_text_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="no held-out text"):
        sizes(ByteTokenizer(), [])
