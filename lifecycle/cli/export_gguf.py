"""`lifecycle export BUNDLE OUT.gguf`: a bundle as one file for llama.cpp and what is built on it."""

from pathlib import Path

from rich.console import Console

from lifecycle.core.artifact import intact_hash
from lifecycle.core.config import ConfigError
from lifecycle.inference.defaults import end_ids, read_generation
from lifecycle.model.counts import num_params
from lifecycle.text.gguf_vocabulary import vocabulary_of
from lifecycle.weights.gguf import GgufFile
from lifecycle.weights.gguf_mixtures import MIXTURES
from lifecycle.weights.gguf_models import write_gguf
from lifecycle.weights.published import (
    FLOAT32,
    family_of,
    held_config,
    load_config,
    open_weights,
    read_from,
    require_fit,
)


def export_gguf(bundle: Path, out: Path, encoding: str) -> None:
    """Writes weights, tokenizer and chat template of a bundle; memory holds one tensor.

    Raises `ConfigError` for a file that is there already, `TokenizerError` and `WeightsError` for what llama.cpp does
    not compute.
    """
    if out.exists():
        raise ConfigError(f"{out} already exists; choose another name, or delete it")
    version = intact_hash(bundle)
    config = load_config(bundle)
    source = open_weights(config, bundle)
    config = held_config(config, source)
    require_fit(config, family_of(config), source, str(bundle))
    more = {"general.name": bundle.name, "general.version": version[:12]} | vocabulary_of(bundle, config.vocab_size)
    ends = end_ids(read_generation(bundle))
    if turn_ends := [end for end in ends if end != more["tokenizer.ggml.eos_token_id"]]:
        more["tokenizer.ggml.eot_token_id"] = turn_ends[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    read = read_from(config, family_of(config).layout, source, FLOAT32)
    write_gguf(config.trunk, read, out, MIXTURES[encoding], more)
    console = Console(highlight=False, markup=False, emoji=False)
    counts = ", ".join(f"{count} {name}" for name, count in GgufFile(out).encodings.items())
    console.print(f"{config.family}, {num_params(config.trunk):,} parameters: {counts} tensors")
    console.print(f"file    {out}, {out.stat().st_size:,} bytes", soft_wrap=True)
