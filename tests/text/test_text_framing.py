"""Text that is framed already, and text that gets its BOS and EOS from the tokenizer's own settings."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.text.hf_tokenizer import HFTokenizer
from lifecycle.text.tokenizer import Tokenizer, TokenizerConfig, TokenizerError, load_tokenizer, train_tokenizer

MARKED = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "user\n", " ", "a b", "<|im_", "\n", "é"]), max_size=8
).map("".join)


@settings(max_examples=60, deadline=None)
@given(text=MARKED)
def test_marked_text_has_the_special_tokens_that_it_names(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_marked(text)
    assert tokenizer.decode(ids, skip_special=False) == text
    for name in ("<|im_start|>", "<|im_end|>"):
        assert ids.count(tokenizer.special_ids[name]) == text.count(name)
    only = tokenizer.encode_marked(text, ["<|im_end|>"])
    assert only.count(tokenizer.special_ids["<|im_end|>"]) == text.count("<|im_end|>")
    assert tokenizer.special_ids["<|im_start|>"] not in only
    assert tokenizer.encode_marked(text, []) == tokenizer.encode(text)  # as nothing says otherwise


@settings(max_examples=40, deadline=None)
@given(text=MARKED)
def test_marked_text_is_the_library_s(hf_folder: Path, text: str) -> None:
    raw = tokenizers.Tokenizer.from_file(str(hf_folder / "tokenizer.json"))
    assert load_tokenizer(hf_folder).encode_marked(text) == raw.encode(text, add_special_tokens=False).ids


def test_a_name_that_is_no_special_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"'<\|end\|>' is no special token; known: .*<\|im_end\|>"):
        tokenizer.encode_marked("a", ["<|end|>"])


def template(*parts: str) -> dict[str, Any]:
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if part == "$A" else {"SpecialToken": {"id": part, "type_id": 0}}
        for part in parts
    ]
    tokens = {
        part: {"id": part, "ids": [i], "tokens": [part]} for i, part in enumerate(["<|endoftext|>", "<|im_start|>"])
    }
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: token for name, token in tokens.items() if name in parts}}  # fmt: skip


@pytest.mark.parametrize(
    ("processor", "config", "framed"),
    [
        (None, {}, [7]),
        (template("<|im_start|>", "$A"), {}, [1, 7]),
        (template("$A", "<|endoftext|>"), {}, [7, 0]),
        (template("<|im_start|>", "$A", "<|endoftext|>"), {}, [1, 7, 0]),
        (template("<|im_start|>", "$A", "<|endoftext|>"), {"add_bos_token": False, "add_eos_token": False}, [7]),
        (None, {"add_bos_token": True, "add_eos_token": True}, [1, 7, 0]),
        (None, {"kind": "hf"}, [1, 7, 0]),  # a model trained here
    ],
)
def test_a_text_has_bos_and_eos_as_the_tokenizer_s_files_say_once(
    hf_folder: Path, tmp_path: Path, processor: object, config: dict[str, object], framed: list[int]
) -> None:
    tree = json.loads((hf_folder / "tokenizer.json").read_text()) | {"post_processor": processor}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    names = {"eos_token": "<|endoftext|>", "bos_token": "<|im_start|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | config))
    tokenizer = HFTokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 0)
    assert tokenizer.frame([7]) == framed
    assert tokenizer.frame(framed) == framed  # no second BOS or EOS
    assert tokenizer.frame([7], ends=True)[-2:] == [7, 0] and tokenizer.frame([7], ends=False)[-1] == 7


@pytest.mark.parametrize("kind", ["hf", "sentencepiece"])
@pytest.mark.parametrize("config", [{}, {"bos_token": None}, {"add_bos_token": True, "add_eos_token": True}])
def test_a_tokenizer_of_published_weights_frames_texts_as_it_did(
    hf_folder: Path, llama_folder: Path, tmp_path: Path, kind: Literal["hf", "sentencepiece"], config: dict[str, Any]
) -> None:
    """Rows that go on from published weights began with EOS where there is no BOS."""
    source, own = (hf_folder if kind == "hf" else llama_folder), tmp_path / "own"
    own.mkdir()
    native = "tokenizer.json" if kind == "hf" else "tokenizer.model"
    (own / native).write_bytes((source / native).read_bytes())
    names = {"eos_token": "<|endoftext|>", "unk_token": "<|im_end|>"} if kind == "hf" else {"legacy": False}
    (own / "tokenizer_config.json").write_text(json.dumps(names | config))
    before, settings = load_tokenizer(own), TokenizerConfig(kind=kind, path=str(own))
    train_tokenizer(settings, [], tmp_path / "kept", seed=0, is_published=True)
    train_tokenizer(settings, [], tmp_path / "fresh", seed=0)
    after = load_tokenizer(tmp_path / "kept")
    for text in ("", "a b"):
        assert after.frame(after.encode(text)) == before.frame(before.encode(text))
        assert after.begin(after.encode(text)) == before.begin(before.encode(text))
    marked = f"a{next(iter(before.special_ids))} b"
    assert after.encode_marked(marked) == before.encode_marked(marked)
    assert (after.fingerprint, after.has_bos) == (before.fingerprint, before.has_bos)
    assert load_tokenizer(tmp_path / "fresh").adds_bos  # of fresh weights, which learn documents that begin so
