"""Text that is framed already, and text that gets its BOS and EOS from the tokenizer's own settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.text.hf_tokenizer import HFTokenizer
from lifecycle.text.tokenizer import Tokenizer, TokenizerError, load_tokenizer

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
