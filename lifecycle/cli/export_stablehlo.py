"""`lifecycle export BUNDLE OUT.stablehlo`: a bundle's prefill and decode programs as StableHLO, with its weights.

They are traced as for a CPU, whatever is here: kernels of one kind of device have no place in a program for all.
"""

import json
import shutil
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from lifecycle.cli.exported_bundle import open_for_export, tell
from lifecycle.core.config import ConfigError
from lifecycle.core.files import temporary, write_text
from lifecycle.inference import standalone
from lifecycle.inference.defaults import end_ids, read_generation
from lifecycle.inference.exported import cache_shapes, export_step, weight_shapes
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import num_params
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import FILES as TOKENIZER_FILES
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.weights.published import CONFIG
from lifecycle.weights.safetensors_files import Planned, write_safetensors

PREFILL_SIZE = 128
DTYPES: dict[str, Literal["float32", "bfloat16"]] = {"f32": "float32", "bf16": "bfloat16"}


def export_stablehlo(bundle: Path, out: Path, encoding: str) -> None:
    """Writes a folder: `prefill.bin` and `decode.bin` (`jax.export`, for one row), `model.safetensors` (canonical
    names), `program.json`, the tokenizer, and `generate.py`, which runs them with JAX and NumPy alone.

    Raises `ConfigError` for a folder that is there already, and an encoding of matrices that only GGUF has.
    """
    if encoding not in DTYPES:
        raise ConfigError(f"--encoding {encoding}: of StableHLO's weights {' and '.join(DTYPES)} are written")
    held = open_for_export(bundle, out)
    jax.config.update("jax_platforms", "cpu")
    config = held.config.model_copy(update={"compute_dtype": DTYPES[encoding]})
    unfinished = temporary(out)
    shutil.rmtree(unfinished, ignore_errors=True)  # left by an interrupted export
    unfinished.mkdir(parents=True)
    try:
        planned = {name: Planned(np.dtype(x.dtype), x.shape) for name, x in weight_shapes(config).items()}
        write_safetensors(unfinished, planned, lambda name: held.read(name, None), largest_file_bytes=1 << 62)
        _write_programs(config, bundle, unfinished, held.version)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    unfinished.rename(out)
    tell(
        f"{config.family}, {num_params(config):,} parameters in {DTYPES[encoding]}, prefill and decode",
        f"folder  {out}; python {out / 'generate.py'} IDS...",
    )


def _write_programs(config: ModelConfig, bundle: Path, folder: Path, version: str) -> None:
    """The programs, what one must know to run them, the tokenizer's files, and the script that runs them."""
    length, size = config.max_seq_len, min(PREFILL_SIZE, config.max_seq_len)
    for name, num_tokens in (("prefill", size), ("decode", 1)):
        (folder / f"{name}.bin").write_bytes(export_step(config, 1, length, num_tokens).serialize())
    tokenizer = load_tokenizer(bundle, config.vocab_size)
    ends = [*ChatTemplate.load(bundle, tokenizer).stop_ids, *end_ids(read_generation(bundle))]
    facts = {
        "version": version, "length": length, "prefill_size": size, "vocab_size": config.vocab_size,
        "ends": list(dict.fromkeys(ends)),
        "cache": [[list(array.shape), array.dtype.name] for array in cache_shapes(config, 1, length)],
    }  # fmt: skip
    write_text(folder / "program.json", json.dumps(facts, indent=1) + "\n")
    for file in (CONFIG, *TOKENIZER_FILES):
        if (bundle / file).is_file():
            shutil.copyfile(bundle / file, folder / file)
    shutil.copyfile(standalone.__file__, folder / "generate.py")
