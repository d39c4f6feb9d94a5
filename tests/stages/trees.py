"""Run files with training stages of a tiny model of bytes, as trees of settings."""

from typing import Any

from lifecycle.core.config import validate
from lifecycle.stages.config import RunConfig

SIZES = {"steps": 3, "seq_len": 32, "global_batch_size": 2}
MODEL = {"vocab_size": 264, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2,
         "head_dim": 16, "max_seq_len": 64}  # fmt: skip
DATA = {"sources": [{"name": "own", "path": "corpus"}]}


def run_of(train: dict[str, dict[str, Any]], **sections: Any) -> RunConfig:
    """A run with these training stages, of a tiny model of bytes."""
    tree = {"name": "tiny", "tokenizer": {"kind": "bytes"}, "model": MODEL, **sections}
    return validate(RunConfig, tree | {"train": {name: SIZES | stage for name, stage in train.items()}})


def next_token(**settings: Any) -> dict[str, Any]:
    return {"objective": "next_token", **settings}


def sft(**settings: Any) -> dict[str, Any]:
    return {"objective": "sft", **settings}


def dpo(**settings: Any) -> dict[str, Any]:
    return {"objective": "dpo", **settings}


def grpo(**settings: Any) -> dict[str, Any]:
    """Of completions so short that they fit the tiny rows."""
    sizes = {"prompts_per_step": 1, "group_size": 2, "max_prompt_tokens": 4, "max_completion_tokens": 2}
    return {"objective": "grpo", "rewards": [{"name": "exact"}], **sizes, **settings}
