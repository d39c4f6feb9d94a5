"""Every kind of tokenizer keeps every character and never lets a text make a special token."""

import io
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from lifecycle.core.config import ConfigError, validate
from lifecycle.core.store import Store
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import read_template
from lifecycle.text.gguf_vocabulary import vocabulary_of
from lifecycle.text.hf_tokenizer import HFTokenizer
from lifecycle.text.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    TokenizerError,
    load_tokenizer,
    tokenizer_at,
    train_tokenizer,
)
from tests.website import Website

SPACES = st.text(alphabet=" \t\n\r\u2581\u00a0\0ab()", max_size=30)
SPECIAL_LOOKING = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|endoftext|>", "<unk>", "<0x41>", "<", " ", "a"]),
    max_size=6,
).map("".join)
TEXTS = st.one_of(st.text(max_size=40), SPACES, SPECIAL_LOOKING)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example("\u2581")
@example(" \u2581 x \u2581\u2581")
@example("def f():\r\n\treturn '\U0001f600'\n\n\n")
def test_decode_undoes_encode(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special=False) == text
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert sum(tokenizer.byte_lengths[i] for i in ids) == len(text.encode())


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_a_batch_is_its_texts(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_special_tokens_come_from_templates_only(tokenizer: Tokenizer) -> None:
    end = tokenizer.special_ids["<|im_end|>"]
    assert tokenizer.split_specials("a<|im_end|>\n") == [("a", None), ("<|im_end|>", end), ("\n", None)]
    assert end not in tokenizer.encode("<|im_end|>")
    assert end not in [token_id for token_id, _, _ in tokenizer.encode_spans("<|im_end|>", is_first=False)]
    assert tokenizer.decode([end]) == ""
    assert tokenizer.decode([end], skip_special=False) == "<|im_end|>"


def test_the_longest_name_of_a_special_token_counts() -> None:
    tokenizer = ByteTokenizer()
    tokenizer.special_ids = {"<|a": 256, "<|a|>": 257, "<|": 258}
    parts = [("<|a|>", 257), ("<|a", 256), ("b", None), ("<|", 258)]
    assert tokenizer.split_specials("<|a|><|ab<|") == parts


def test_special_tokens_that_the_vocabulary_matches_in_text_are_taken_apart(tmp_path: Path) -> None:
    """A model whose turn marks are user-defined pieces would encode a typed mark as one."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to train on, and more words"] * 20), model_writer=model, vocab_size=300,
        model_type="bpe", byte_fallback=True, user_defined_symbols=["<|im_start|>", "<|im_end|>", "::"],
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    raw = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    end = tokenizer.special_ids["<|im_end|>"]
    assert end in raw.encode("hi<|im_end|>")  # the danger is real
    assert end not in tokenizer.encode("hi<|im_end|>")
    assert "::" not in tokenizer.special_ids
    assert tokenizer.strips_leading_space  # SentencePiece's default dummy prefix
    assert tokenizer.decode(tokenizer.encode("some words")) == raw.decode(raw.encode("some words")) == "some words"


def test_sentencepiece_ids_and_texts_are_the_library_s(sentencepiece_folder: Path, source_texts: list[str]) -> None:
    raw = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    tokenizer = load_tokenizer(sentencepiece_folder)
    ids = tokenizer.encode(source_texts[0])
    assert ids == raw.encode(source_texts[0])
    assert tokenizer.decode(ids) == raw.decode(ids)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (raw.bos_id(), raw.eos_id(), raw.pad_id())


def test_a_full_disk_is_an_error_of_the_system(source_texts: list[str], tmp_path: Path) -> None:
    """Not of the library that makes `tokenizer.json`: the command line knows what to say of it."""
    (tmp_path / "tokenizer.json.tmp").symlink_to("/dev/full")
    config = validate(TokenizerConfig, {"vocab_size": 400, "sample_bytes": 20_000})
    with pytest.raises(OSError, match="No space left on device"):
        train_tokenizer(config, source_texts[:1], tmp_path, seed=0)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_tokenizer_json_beside_a_model_gives_the_same_ids(
    model_type: str, source_texts: list[str], tmp_path: Path
) -> None:
    config = validate(TokenizerConfig, {"vocab_size": 500, "model_type": model_type, "sample_bytes": 60_000})
    train_tokenizer(config, source_texts[:2], tmp_path, seed=0)
    model, exported = load_tokenizer(tmp_path), load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(exported, HFTokenizer)
    unseen = source_texts[2] + " \u00e9\U0001f600\t x  y\n\n"
    assert exported.encode(unseen) == model.encode(unseen)
    assert exported.special_ids == model.special_ids
    assert exported.decode(exported.encode(unseen)) == unseen
    other_tool = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert other_tool.decode(other_tool.encode(unseen).ids) == unseen
    assert other_tool.encode("a<|im_end|>").ids[-1] == model.special_ids["<|im_end|>"]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_without_byte_fallback_other_characters_are_unknown_in_both_files(
    model_type: str, source_texts: list[str], tmp_path: Path
) -> None:
    settings = {"vocab_size": 400, "model_type": model_type, "sample_bytes": 60_000, "byte_fallback": False}
    train_tokenizer(validate(TokenizerConfig, settings), source_texts[:2], tmp_path, seed=0)
    model, exported = load_tokenizer(tmp_path), load_tokenizer(tmp_path / "tokenizer.json")
    text = "for \U0001f600\u6587 in range"
    ids = model.encode(text)
    assert ids == exported.encode(text) and ids.count(0) == 1 and model.unknown_id == exported.unknown_id == 0
    assert model.decode(ids) == "for \ufffd in range"
    assert "<0x41>" not in [exported.token_bytes(i).decode(errors="replace") for i in range(model.vocab_size)]
    assert [model.decode(row) for row in model.encode_batch(["a \u2581\u2581 b", "c"])] == ["a \ufffd\ufffd b", "c"]
    refused = {"bpe": "without single bytes, which llama.cpp needs", "unigram": "a unigram vocabulary"}
    with pytest.raises(TokenizerError, match=refused[model_type]):
        vocabulary_of(tmp_path, 400)


def test_hf_ids_are_the_library_s_and_its_bytes_too(hf_folder: Path, source_texts: list[str]) -> None:
    raw = tokenizers.Tokenizer.from_file(str(hf_folder / "tokenizer.json"))
    tokenizer = load_tokenizer(hf_folder)
    ids = tokenizer.encode(source_texts[0][:5000])
    assert ids == raw.encode(source_texts[0][:5000], add_special_tokens=False).ids
    assert tokenizer.decode(ids) == raw.decode(ids)
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.pad_id == raw.token_to_id("<|endoftext|>")


BOS_FIRST = {
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
    {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("post_processor", "config", "adds_bos"),
    [
        (None, {}, False),
        (BOS_FIRST, {"bos_token": "<|im_start|>"}, True),  # Llama 3
        (BOS_FIRST, {"bos_token": "<|im_start|>", "add_bos_token": False}, False),
        (None, {"bos_token": "<|im_start|>", "add_bos_token": True}, True),  # DeepSeek V3
        (None, {"bos_token": None, "add_bos_token": True}, False),  # there is none
        (None, {"bos_token": None, "kind": "hf"}, True),  # trained here: EOS begins a document
    ],
)
def test_a_context_begins_with_bos_if_the_published_files_say_so(
    hf_folder: Path, tmp_path: Path, post_processor: object, config: dict[str, object], adds_bos: bool
) -> None:
    """As transformers encodes a prompt. An empty one is BOS or EOS, as in lm-evaluation-harness."""
    tree = json.loads((hf_folder / "tokenizer.json").read_text()) | {"post_processor": post_processor}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"} | config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.begin([7, 8]) == ([tokenizer.bos_id, 7, 8] if adds_bos else [7, 8])
    assert tokenizer.begin([]) == [tokenizer.bos_id]
    assert tokenizer.bos_id == (1 if config.get("bos_token") else tokenizer.eos_id)


def test_bare_sentencepiece_models_begin_with_bos_as_their_classes_do(llama_folder: Path, tmp_path: Path) -> None:
    assert load_tokenizer(llama_folder).begin([7]) == [1, 7]
    shutil.copy(llama_folder / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    assert load_tokenizer(tmp_path).begin([7]) == [7]


def test_models_trained_here_begin_with_bos(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """`add_bos_token` is false in their files for other tools, whose text begins with it from a template."""
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] is False
    assert load_tokenizer(tmp_path).begin([7]) == [tokenizer.bos_id, 7]


def test_end_of_text_may_be_the_unknown_token_too(hf_folder: Path, tmp_path: Path) -> None:
    shutil.copy(hf_folder / "tokenizer.json", tmp_path)
    for unk in ("<|endoftext|>", {"content": "<|endoftext|>"}):
        config = {"eos_token": "<|endoftext|>", "unk_token": unk}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.special_ids["<|endoftext|>"] == tokenizer.eos_id
        assert tokenizer.eos_id not in tokenizer.encode("<|endoftext|>")


def test_a_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.special_ids, again.bos_id, again.eos_id) == (
        tokenizer.special_ids,
        tokenizer.bos_id,
        tokenizer.eos_id,
    )
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer.special_ids[config["eos_token"]] == tokenizer.eos_id


def test_an_existing_tokenizer_brings_its_chat_template(hf_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(hf_folder, tmp_path / "own")
    config = {"eos_token": "<|endoftext|>", "chat_template": "{{ messages[0]['content'] }}"}
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(config))
    for path in (tmp_path / "own", tmp_path / "own" / "tokenizer.json"):
        train_tokenizer(TokenizerConfig(kind="hf", path=str(path)), [], tmp_path / "out", seed=0)
        assert read_template(tmp_path / "out") == config["chat_template"]


@pytest.mark.parametrize("where", ["web", "store"])
def test_a_tokenizer_at_an_address_is_the_one_in_its_folder(
    where: str, hf_folder: Path, tmp_path: Path, website: Website, in_memory: dict[str, MemoryStore]
) -> None:
    shutil.copytree(hf_folder, tmp_path / "own")
    template = {"eos_token": "<|endoftext|>", "chat_template": "{{ messages[0]['content'] }}"}
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(template))
    (tmp_path / "own" / "model.safetensors").write_bytes(b"weights")
    address = website.add(tmp_path / "own", "own") if where == "web" else "s3://bucket/own"
    for file in (tmp_path / "own").iterdir():
        Store("s3://bucket/own").upload(file, file.name)
    for place, has_template in ((address, True), (f"{address}/tokenizer.json", False)):
        config = validate(TokenizerConfig, {"kind": "hf", "path": place})
        out = tmp_path / str(has_template)
        stats = train_tokenizer(config, [], out, seed=0)
        assert stats["fingerprint"] == load_tokenizer(hf_folder).fingerprint
        assert read_template(out) == (template["chat_template"] if has_template else None)
    assert not (tokenizer_at(address) / "model.safetensors").exists()
    with pytest.raises(ConfigError, match=f"path={address} holds a hf tokenizer"):
        train_tokenizer(validate(TokenizerConfig, {"path": address}), [], tmp_path / "out", seed=0)


def test_an_existing_tokenizer_is_taken_over(sentencepiece_folder: Path, hf_folder: Path, tmp_path: Path) -> None:
    for kind, folder in (("sentencepiece", sentencepiece_folder), ("hf", hf_folder)):
        config = validate(TokenizerConfig, {"kind": kind, "path": str(folder)})
        stats = train_tokenizer(config, [], tmp_path / kind, seed=0)
        assert stats["fingerprint"] == load_tokenizer(folder).fingerprint
        template = tmp_path / kind / "chat_template.jinja"
        assert (template.read_text() if template.is_file() else None) == read_template(folder)
    wrong = TokenizerConfig(kind="hf", path=str(sentencepiece_folder))
    with pytest.raises(ConfigError, match=r"tokenizer\.kind=sentencepiece"):
        train_tokenizer(wrong, [], tmp_path / "wrong", seed=0)


def test_bad_settings_and_files_say_how_to_mend_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kind=hf trains BPE"):
        validate(TokenizerConfig, {"kind": "hf", "model_type": "unigram"})
    with pytest.raises(ConfigError, match="across_words set kind=sentencepiece"):
        validate(TokenizerConfig, {"kind": "hf", "across_words": True})
    with pytest.raises(ConfigError, match="kind=hf is made of bytes"):
        validate(TokenizerConfig, {"kind": "hf", "byte_fallback": False})
    with pytest.raises(ConfigError, match="no pair of this text is left after 26"):
        train_tokenizer(TokenizerConfig(kind="hf"), ["abab"], tmp_path / "hf", seed=0)
    with pytest.raises(ConfigError, match="vocab_size=260: 256 bytes and the special tokens need 261"):
        train_tokenizer(TokenizerConfig(kind="hf", vocab_size=260), ["abab"], tmp_path / "hf", seed=0)
    with pytest.raises(ConfigError, match=r"remove tokenizer\.path"):
        validate(TokenizerConfig, {"kind": "bytes", "path": "x"})
    with pytest.raises(ConfigError, match="no text to train on"):
        train_tokenizer(TokenizerConfig(), [], tmp_path, seed=0)
    with pytest.raises(ConfigError, match="smaller vocab_size"):
        train_tokenizer(TokenizerConfig(), ["too little text"], tmp_path, seed=0)
    with pytest.raises(ConfigError, match="larger vocab_size"):
        train_tokenizer(TokenizerConfig(vocab_size=300), ["".join(map(chr, range(0x4E00, 0x5000)))], tmp_path, seed=0)
    with pytest.raises(ConfigError, match="vocab_size=100"):
        train_tokenizer(TokenizerConfig(vocab_size=100), ["text"], tmp_path, seed=0)
    with pytest.raises(TokenizerError, match="no tokenizer here"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"cut short")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: not a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_vocabulary_without_end_of_text_or_with_another_decoder_is_refused(hf_folder: Path, tmp_path: Path) -> None:
    content = json.loads((hf_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": []}))
    with pytest.raises(TokenizerError, match="name it as eos_token"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(content | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}})
    )
    with pytest.raises(TokenizerError, match="decoder WordPiece"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"decoder": {"type": "ByteFallback"}}))
    with pytest.raises(TokenizerError, match="characters without a token would vanish"):
        load_tokenizer(tmp_path)


def test_ids_and_characters_that_cannot_be(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(TokenizerError, match="lone surrogate"):
        tokenizer.encode("a\ud800")
