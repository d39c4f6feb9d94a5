"""`lifecycle quantise BUNDLE OUT`: a bundle whose matrices are int4, with `--texts FILE` calibrated on these (GPTQ)."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
from cyclopts import Parameter

from lifecycle.cli.display import progress_on
from lifecycle.cli.exported_bundle import tell
from lifecycle.cli.import_weights import new_bundle
from lifecycle.cli.make import BUNDLES, start_jax
from lifecycle.cli.remote_models import Origin
from lifecycle.cli.terminal import terminal
from lifecycle.core.artifact import MANIFEST
from lifecycle.core.config import ConfigError
from lifecycle.core.files import user_cache
from lifecycle.inference.bundle import load_bundle
from lifecycle.model.calibration import calibrated
from lifecycle.model.counts import num_params
from lifecycle.text.tokenizer import Tokenizer
from lifecycle.weights.gptq import gptq
from lifecycle.weights.pack_quantised import write_pack_quantised
from lifecycle.weights.published import CONFIG
from lifecycle.weights.safetensors_files import INDEX

type Bundle = Annotated[Path, Parameter(help="The bundle's folder.")]
type Out = Annotated[Path, Parameter(help="The new bundle's folder; it must not be there yet.")]
type Texts = Annotated[
    Path | None,
    Parameter(
        help="JSONL or Parquet with texts in `text` to calibrate on: best a run's own, documents-*/kept-*.parquet. "
        "Without any, all is rounded to nearest, which keeps what was trained for int4."
    ),
]
type Rows = Annotated[int, Parameter(help="Rows of tokens to calibrate on.")]
type Length = Annotated[int, Parameter(help="Tokens of a row.")]
ROWS, LENGTH = 64, 512


def quantise(bundle: Bundle, out: Out, /, *, texts: Texts = None, rows: Rows = ROWS, length: Length = LENGTH) -> None:
    """Makes a bundle in int4 that `serve.weights=int4` serves with exactly its values. Embedding and head stay as they
    are; the matrices of experts are rounded to nearest."""
    if rows < 1 or length < 2:
        raise ConfigError(f"--rows={rows} and --length={length}: at least one row of two tokens")
    if texts is None and (rows, length) != (ROWS, LENGTH):
        raise ConfigError("--rows and --length are of the texts to calibrate on; give --texts, or leave them out")
    if texts is not None and not texts.is_file():
        raise ConfigError(f"{texts}: no such file of texts")
    start_jax(user_cache() / BUNDLES)
    model = load_bundle(bundle)
    params, how = model.params, "rounded to nearest"
    if texts is not None and length > model.config.max_seq_len:
        raise ConfigError(f"--length={length} is more than the model's context, {model.config.max_seq_len}")
    ids = None if texts is None else calibration_rows(texts, model.tokenizer, rows, length)
    with new_bundle(out, Origin(str(bundle)), "int4") as folder:
        if ids is not None:
            how = f"calibrated on {rows} rows of {length}"
            with progress_on(terminal(stderr=True)) as progress:
                params = calibrated(model.config, params, jnp.asarray(ids), gptq, progress)
        for file in sorted(bundle.iterdir()):
            if file.is_file() and file.name not in (MANIFEST, CONFIG, INDEX) and file.suffix != ".safetensors":
                shutil.copyfile(file, folder / file.name)
        named = {f"{name}_token_id": getattr(model.tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
        write_pack_quantised(model.config, params, folder, **named)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    tell(
        f"{model.config.family}, {num_params(model.config):,} parameters: int4, {how}",
        f"bundle  {out}, {size:,} bytes of weights",
    )


def calibration_rows(texts: Path, tokenizer: Tokenizer, rows: int, length: int) -> np.ndarray:
    """The first `[rows, length]` tokens of a file's texts, one after the other, each from BOS to EOS.

    Raises `ConfigError` for a row without a text, and for a file with too few tokens.
    """
    ids: list[int] = []
    for text in _texts(texts):
        if len(ids) >= rows * length:
            break
        ids += [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
    if len(ids) < rows * length:
        raise ConfigError(f"{texts} has {len(ids):,} tokens, fewer than {rows} rows of {length}; give more texts")
    return np.asarray(ids[: rows * length], np.int32).reshape(rows, length)


def _texts(path: Path) -> Iterator[str]:
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise ConfigError(f"{path} has no column `text`, but {', '.join(file.schema_arrow.names)}")
        for batch in file.iter_batches(columns=["text"]):
            yield from (text for text in batch.column(0).to_pylist() if text)
        return
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            yield _text(line, f"{path}, line {number}")


def _text(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, TypeError, KeyError):
        text = None
    if not isinstance(text, str):
        raise ConfigError(f"{where}: not a JSON object with a string `text`")
    return text
