"""What the tokens stage says of text that the tokenizer cannot write."""

import json
from pathlib import Path

import tokenizers
from trees import MODEL, next_token

from lifecycle.core.config import load_config
from lifecycle.core.progress import Silent
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_lost_characters_are_told_of_held_out_text_too(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(16):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"the price {number} is \u20ac and no more\n" * 9)
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *map(chr, range(10, 127))])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    made.decoder = tokenizers.decoders.ByteFallback()
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    tree = {
        "name": "run", "root": str(tmp_path), "model": MODEL,
        "train": {"base": next_token(steps=2, seq_len=32, global_batch_size=2)},
        "tokenizer": {"kind": "hf", "path": str(tmp_path / "tokenizer.json")},
        "data": {
            "sources": [{"name": "s", "path": str(tmp_path / "texts")}], "heldout_fraction": 0.25,
            "quality": {"gopher": None, "repetition": None}, "dedup": {"jaccard": 1},
        },
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    notes = Notes()
    tokens = bring_up_to_date(load_config(RunConfig, tmp_path / "run.yaml"), ("tokens",), notes)["tokens"]
    train, heldout = (tokens.stats["splits"][split] for split in ("train", "heldout"))
    assert (train["unknown_tokens"], heldout["unknown_tokens"]) == (9 * train["documents"], 9 * heldout["documents"])
    assert heldout["documents"] and train["documents"]
    lost, num = (train[key] + heldout[key] for key in ("unknown_tokens", "tokens"))
    assert [note for note in notes.notes if f"{lost:,} of {num:,} tokens stand for characters" in note]
