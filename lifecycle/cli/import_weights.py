"""`lifecycle import`: converts a published model to a bundle, tensor by tensor, whatever its size.

The bundle is written under a temporary name and renamed at the end, its manifest last. What must hold: nothing
inconsistent is imported; config, weights and tokenizer are checked against each other before the first weight is
written.
"""

import json
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
from cyclopts import Parameter

from lifecycle.cli.remote_models import Origin, published_at
from lifecycle.cli.terminal import terminal
from lifecycle.core.artifact import MANIFEST, Manifest, artifact_key, code_version, file_facts
from lifecycle.core.config import ConfigError
from lifecycle.core.cpu_time import cpu_seconds
from lifecycle.core.fetched import local_file
from lifecycle.core.file_hashes import combined, file_hashes
from lifecycle.core.files import write_text
from lifecycle.inference.defaults import GENERATION_FILE, sampling_of
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import num_params
from lifecycle.text.chat import TEMPLATE_FILE, ChatTemplate, read_template
from lifecycle.text.gguf_tokenizer import write_tokenizer
from lifecycle.text.interface import TokenizerError, write_rows
from lifecycle.text.probe import missing_abilities
from lifecycle.text.tokenizer import FILES as TOKENIZER_FILES
from lifecycle.text.tokenizer import load_tokenizer, tokenizer_at
from lifecycle.weights.families.family import Family
from lifecycle.weights.families.layout import TensorSource
from lifecycle.weights.gguf import GgufFile, is_gguf
from lifecycle.weights.gguf_models import GgufTensors, config_of, table_of
from lifecycle.weights.published import (
    CONFIG,
    family_of,
    held_config,
    load_config,
    open_weights,
    read_from,
    require_fit,
    write_config,
    write_weights,
)

STAGE = "import"
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

type Dtype = Literal["float32", "float16", "bfloat16"]
type Source = Annotated[
    str,
    Parameter(help="A GGUF file, or a folder with config.json and safetensors; or its address: https, s3, gs."),
]
type Out = Annotated[Path, Parameter(help="The bundle's folder; it must not be there yet.")]
type GivenDtype = Annotated[
    Dtype | None, Parameter(help="Of the weights; by default as published, and float32 from GGUF.")
]
type TemplatePlace = Annotated[
    str | None, Parameter(help="A chat template (jinja2) or its address, instead of its own or for want of one.")
]
type TokenizerPlace = Annotated[
    str | None, Parameter(help="A folder or its address, whose tokenizer is taken instead of its own.")
]


def import_model(
    source: Source,
    out: Out,
    /,
    *,
    dtype: GivenDtype = None,
    tokenizer: TokenizerPlace = None,
    template: TemplatePlace = None,
) -> None:
    """Makes a bundle of a published model: weights, tokenizer, chat template. Of an address, the bundle's manifest has
    the versions of the files that were asked for (their ETags), and the address without its query."""
    path, origin = published_at(source)
    model = find_model(path, None if origin is None else origin.source)
    other = None if tokenizer is None else tokenizer_at(tokenizer)
    given = None if template is None else local_file(template)
    if model.is_dir():
        import_safetensors(model, out, dtype, other, given, origin)
    else:
        import_gguf(model, out, dtype or "float32", other, given, origin)


def find_model(path: Path, source: str | None = None) -> Path:
    """The GGUF file, or the folder with safetensors, that a path means. Raises `ConfigError`, which names `source` if
    that was given, if it is neither."""
    source = source or str(path)
    if path.is_file():
        if is_gguf(path):
            return path
        raise ConfigError(f"{source}: not a GGUF file; of a model in safetensors give the folder")
    if not path.is_dir():
        raise ConfigError(f"{source}: no such file or folder")
    if (path / CONFIG).is_file() and any(path.glob("*.safetensors")):
        return path
    files = sorted(file for file in path.glob("*.gguf") if is_gguf(file))
    if len(files) == 1:
        return files[0]
    if files:
        raise ConfigError(
            f"{source}: {len(files)} GGUF files; give one of them: {', '.join(file.name for file in files)}"
        )
    raise ConfigError(f"{source}: no model here: expected {CONFIG} with *.safetensors, or a GGUF file")


def import_gguf(
    source: Path,
    out: Path,
    dtype: Dtype = "float32",
    tokenizer: Path | None = None,
    template: Path | None = None,
    origin: Origin | None = None,
) -> None:
    """Makes the bundle `out` from a GGUF file; a tokenizer's folder and a template replace the file's own. `origin`:
    where it came from, if that is not its path."""
    file = GgufFile(source)
    config = config_of(file)
    with new_bundle(out, origin or Origin(str(source)), dtype) as folder:
        if tokenizer is None:
            write_tokenizer(file.metadata, folder, str(source))
        else:
            _copy_tokenizer(tokenizer, folder)
        _copy_template(template, folder)
        _write(config, table_of(config), GgufTensors(file, config), source, folder, dtype)
    encodings = ", ".join(f"{count} {name}" for name, count in file.encodings.items())
    _say(f"{encodings} tensors as {dtype}", config, out)


def import_safetensors(
    source: Path,
    out: Path,
    dtype: Dtype | None = None,
    tokenizer: Path | None = None,
    template: Path | None = None,
    origin: Origin | None = None,
) -> None:
    """Makes the bundle `out` from a published folder; without `dtype` every tensor keeps its own. `origin`: where it
    came from, if that is not its path."""
    config = load_config(source, may_score=True)
    file = open_weights(config, source)
    config = held_config(config, file)
    with new_bundle(out, origin or Origin(str(source)), dtype) as folder:
        _copy_tokenizer(tokenizer or source, folder)
        _copy_template(template, folder)
        if (source / GENERATION_FILE).is_file():
            sampling_of(source)  # rejects an invalid file before the weights are written: no bundle opens with one
            shutil.copyfile(source / GENERATION_FILE, folder / GENERATION_FILE)
        _write(config, family_of(config), file, source, folder, dtype)
    _say(f"{len(file.shapes)} tensors as {dtype or 'they were'}", config, out)


def _write(
    config: ModelConfig, family: Family, source: TensorSource, where: Path, folder: Path, dtype: Dtype | None
) -> None:
    """Writes config, generation defaults and weights into `folder`, which already has the tokenizer.

    Errors about `source` name its path, `where`.
    """
    require_fit(config, family, source, str(where))
    tokenizer = load_tokenizer(folder, config.vocab_size)
    if tokenizer.unusable:
        write_rows(folder, config.vocab_size)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    if not (folder / GENERATION_FILE).is_file():
        ends = ChatTemplate.load(folder, tokenizer).stop_ids if read_template(folder) else tokenizer.eos_id
        greedy = ids | {"eos_token_id": ends, "do_sample": False}  # no sampling settings are known
        write_text(folder / GENERATION_FILE, json.dumps(greedy, indent=2) + "\n")
    largest = max(source.shapes, key=lambda name: np.prod(source.shapes[name]))
    asked = DTYPES[dtype] if dtype else None
    write_config(config, folder, source.dtype(largest) if asked is None else asked, **ids)

    def dtypes(name: str, arrays: tuple[str, ...]) -> np.dtype:
        if asked is not None:
            return asked
        here = family.layout.location(config, arrays[0])
        return source.dtype(here.name if name in family.layout.copied(config) and here is not None else name)

    write_weights(config, read_from(config, family.layout, source, asked), folder, dtypes)


def _copy_template(template: Path | None, folder: Path) -> None:
    if template is None:
        return
    if not template.is_file():
        raise ConfigError(f"{template}: no such chat template")
    shutil.copyfile(template, folder / TEMPLATE_FILE)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    try:
        load_tokenizer(source)
    except TokenizerError as error:
        raise ConfigError(f"{error}; or give a folder with a tokenizer by --tokenizer") from None
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


@contextmanager
def new_bundle(out: Path, origin: Origin, dtype: str | None) -> Generator[Path]:
    """A folder to fill; on success it gets a manifest and its final name."""
    if out.exists():
        raise ConfigError(f"{out} already exists; choose another folder, or delete it")
    folder = out.with_name(out.name + ".partial")
    shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted import
    folder.mkdir(parents=True)
    started, cpu = time.monotonic(), cpu_seconds()
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder)
        raise
    config: dict[str, Any] = {**origin.recorded, "dtype": dtype}
    hashes = file_hashes(folder, sorted(path.name for path in folder.iterdir()))
    manifest = Manifest(
        stage=STAGE, key=artifact_key(STAGE, config, {}), content_hash=combined(hashes), config=config,
        inputs={}, input_hashes={}, files=file_facts(folder, hashes), stats={}, code=code_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"), wall_s=time.monotonic() - started,
        cpu_s=cpu_seconds() - cpu,
    )  # fmt: skip
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1))
    folder.rename(out)


def _say(what: str, config: ModelConfig, out: Path) -> None:
    console = terminal(highlight=False, markup=False)
    console.print(f"{config.family}, {num_params(config):,} parameters: {what}")
    tokenizer = load_tokenizer(out)
    if tokenizer.unusable:
        console.print(
            f"the model has no row for {', '.join(tokenizer.unusable)}: neither read nor produced", soft_wrap=True
        )
    if read_template(out) is None:
        console.print("no chat template: fine-tune it on chats, or import it again with --template FILE")
    else:
        for line in missing_abilities(ChatTemplate.load(out, tokenizer)):
            console.print(f"chat template: {line}", soft_wrap=True)
    console.print(f"bundle  {out}")
