r"""Byte-level BPE, trained by the `tokenizers` library and written as a `tokenizer.json`.

Text is cut by a published pattern, and no token crosses a cut: Llama 3's has up to three digits in a token, Qwen 2's
one. Every byte is a token, so any text can be written, without normalisation. Radford et al., "Language Models are
Unsupervised Multitask Learners", 2019, section 2.2.
"""

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from lifecycle.core.config import ConfigError
from lifecycle.text.hf_tokenizer import JSON_FILE, HFTokenizer
from lifecycle.text.interface import BOS, EOS, IM_END, IM_START, PAD

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
SPECIALS = (BOS, EOS, PAD, IM_START, IM_END)


def train_byte_level(
    texts: Iterable[str], out: Path, vocab_size: int, *, split_digits: bool, special_tokens: tuple[str, ...] = ()
) -> None:
    """Trains on `texts` and writes `tokenizer.json` and `tokenizer_config.json` into `out`; `special_tokens` come after
    `SPECIALS`.

    Raises `ConfigError` if the text has too few pairs for the vocabulary.
    """
    specials = [AddedToken(name, special=True, normalized=False) for name in (*SPECIALS, *special_tokens)]
    smallest = 256 + len(specials)
    if vocab_size < smallest:
        raise ConfigError(f"tokenizer.vocab_size={vocab_size}: 256 bytes and the special tokens need {smallest}")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN if split_digits else LLAMA3_PATTERN), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (size := tokenizer.get_vocab_size()) < vocab_size:
        fix = f"give it more text (sample_bytes) or vocab_size={size}"
        raise ConfigError(f"tokenizer: vocab_size={vocab_size}, and no pair of this text is left after {size}; {fix}")
    tokenizer.save(str(out / JSON_FILE))
    HFTokenizer(out / JSON_FILE).save(out)
