"""One small tokenizer of each kind, made once."""

import json
import sysconfig
from pathlib import Path

import pytest
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
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    raw.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
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
