"""One small tokenizer of each kind, made once."""

import io
import json
import sysconfig
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from lifecycle.text.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def source_texts() -> list[str]:
    """Some 300 kB of Python source from this machine."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [(folder / name).read_text(encoding="utf-8") for name in ("argparse.py", "inspect.py", "textwrap.py")]


@pytest.fixture(scope="session")
def sentencepiece_folder(source_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    train_tokenizer(TokenizerConfig(vocab_size=600), source_texts, folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def hf_folder(source_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE as GPT-2 and Qwen have it: end of text is special, there is no BOS."""
    folder = tmp_path_factory.mktemp("hf")
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(source_texts, trainer)
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    return folder


@pytest.fixture(scope="session")
def bytes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    train_tokenizer(TokenizerConfig(kind="bytes"), [], folder, seed=0)
    return folder


@pytest.fixture(scope="session", params=["sentencepiece", "hf", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each kind in turn."""
    return load_tokenizer(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(sentencepiece_folder: Path) -> Tokenizer:
    return load_tokenizer(sentencepiece_folder)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with the settings of Llama 2's: every text begins with a space."""
    folder = tmp_path_factory.mktemp("llama")
    model = io.BytesIO()
    text = "some words to train on, and some more words. What is it? [INST] Hello, hello! [/INST]\n\nthe answer is this"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 20), model_writer=model, vocab_size=400, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="session")
def metaspace_folder(source_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in newer files of Mistral's: only the first text begins with a space, not the one after a special token."""
    folder = tmp_path_factory.mktemp("metaspace")
    raw = RawTokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Metaspace(prepend_scheme="first")
    names = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    raw.train_from_iterator(
        [source_texts[2]], trainers.BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    )
    raw.save(str(folder / "tokenizer.json"))
    return folder
