"""Raw bytes: id `b` is byte `b`, special tokens follow. No training, no unknown text, one token per byte."""

from pathlib import Path

from lifecycle.text.interface import BOS, EOS, IM_END, IM_START, PAD, Span, Tokenizer, write_config

KIND = "bytes"
SPECIALS = (BOS, EOS, PAD, IM_START, IM_END)


class ByteTokenizer(Tokenizer):
    """256 bytes and five special tokens."""

    def __init__(self) -> None:
        self.special_ids = {name: 256 + i for i, name in enumerate(SPECIALS)}
        self.vocab_size = 256 + len(SPECIALS)
        self.bos_id, self.eos_id, self.pad_id = (self.special_ids[name] for name in (BOS, EOS, PAD))

    @property
    def native(self) -> bytes:
        """No bytes: there is nothing to store."""
        return b""

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def _spans(self, text: str, is_first: bool) -> list[Span]:
        return [(byte, i, i + 1) for i, character in enumerate(text) for byte in character.encode()]

    def _bytes_of(self, token_id: int) -> bytes:
        return bytes([token_id])

    def save(self, folder: Path) -> None:
        """Writes `tokenizer_config.json`."""
        write_config(folder, self, KIND)
