"""Opens a bundle, the exported form of a model, whether this project wrote it or another tool did."""

import json
from pathlib import Path
from typing import Any

from lifecycle.core.artifact import content_hash
from lifecycle.core.config import ConfigError, validate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.weights import load_config, load_weights
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer

GENERATION_FILE = "generation_config.json"
DEFAULTS = ("temperature", "top_k", "top_p", "min_p")  # what of `generation_config.json` is used, with `eos_token_id`


def load_bundle(folder: Path) -> Model:
    """Weights, tokenizer, chat template and defaults of a bundle's folder.

    The version is the manifest's content hash, or the hash over the files of a bundle without a manifest. Raises a
    `ValueError` that names the file for what is missing, damaged or does not fit together.
    """
    version = content_hash(folder)
    config = load_config(folder)
    tokenizer = load_tokenizer(folder)
    config.with_vocab(tokenizer.vocab_size)
    template = ChatTemplate.load(folder, tokenizer)
    defaults = _defaults(folder / GENERATION_FILE, template)
    return Model(config, load_weights(config, folder), tokenizer, template, defaults, version)


def _defaults(path: Path, template: ChatTemplate) -> SamplingParams:
    """`do_sample: false` means greedy; end-of-text ids are added to the template's."""
    if not path.is_file():
        return SamplingParams(stop_ids=tuple(template.stop_ids))
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    given = {name: tree[name] for name in DEFAULTS if tree.get(name) is not None}
    if tree.get("do_sample") is False:
        given["temperature"] = 0.0
    ends = tree.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    given["stop_ids"] = tuple(dict.fromkeys([*template.stop_ids, *ends]))
    return validate(SamplingParams, given, where=str(path))
