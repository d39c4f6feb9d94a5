"""`lifecycle export BUNDLE OUT.gguf`: a bundle as one file for llama.cpp and what is built on it."""

from pathlib import Path

from lifecycle.cli.exported_bundle import open_for_export, tell
from lifecycle.inference.defaults import end_ids, read_generation
from lifecycle.model.counts import num_params
from lifecycle.text.gguf_vocabulary import vocabulary_of
from lifecycle.weights.gguf import GgufFile
from lifecycle.weights.gguf_mixtures import MIXTURES
from lifecycle.weights.gguf_models import write_gguf


def export_gguf(bundle: Path, out: Path, encoding: str) -> None:
    """Writes weights, tokenizer and chat template of a bundle; memory holds one tensor.

    Raises `ConfigError` for a file that is there already, `TokenizerError` and `WeightsError` for what llama.cpp does
    not compute.
    """
    held = open_for_export(bundle, out)
    config = held.config
    named = {"general.name": bundle.name, "general.version": held.version[:12]}
    more = named | vocabulary_of(bundle, config.vocab_size)
    ends = end_ids(read_generation(bundle))
    if turn_ends := [end for end in ends if end != more["tokenizer.ggml.eos_token_id"]]:
        more["tokenizer.ggml.eot_token_id"] = turn_ends[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(config, held.read, out, MIXTURES[encoding], more)
    counts = ", ".join(f"{count} {name}" for name, count in GgufFile(out).encodings.items())
    tell(
        f"{config.family}, {num_params(config):,} parameters: {counts} tensors",
        f"file    {out}, {out.stat().st_size:,} bytes",
    )
