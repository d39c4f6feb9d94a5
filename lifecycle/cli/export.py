"""`lifecycle export`: a training stage's weights as a bundle, registered; or a bundle in another format."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lifecycle.cli.arguments import ConfigOrBundle, name_first, read_config
from lifecycle.cli.make import make
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import errors_are_shared

GGUF = ".gguf"

type Words = Annotated[
    str,
    Parameter(
        help="Of a run: a training stage, if it is not the run's own choice; then settings, as key=value. Of a bundle: "
        "the file to write, OUT.gguf."
    ),
]
type Encoding = Annotated[
    Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"] | None,
    Parameter(help="How a GGUF file stores its matrices; f16 by default."),
]


@errors_are_shared()
def export(config_or_bundle: ConfigOrBundle, /, *words: Words, encoding: Encoding = None) -> None:
    """Exports and registers a training stage's weights, by default those of `export.of`; or writes a bundle as a GGUF
    file, for llama.cpp."""
    if config_or_bundle.is_dir():
        _export_bundle(config_or_bundle, words, encoding)
        return
    if encoding is not None:
        raise ConfigError(
            f"--encoding is of GGUF files, which are written from a bundle; export {config_or_bundle} first, then: "
            "lifecycle export BUNDLE OUT.gguf"
        )
    stage, overrides = name_first(words)
    chosen = () if stage is None else (f"export.of={stage}",)
    make(read_config(config_or_bundle, (*overrides, *chosen)), ["export", "register"], [str(config_or_bundle), *overrides])


def _export_bundle(bundle: Path, words: tuple[str, ...], encoding: Encoding) -> None:
    if len(words) != 1 or not words[0].endswith(GGUF):
        raise ConfigError(f"{bundle} is a bundle; give the file to write: lifecycle export BUNDLE OUT{GGUF}")
    from lifecycle.cli.export_gguf import export_gguf  # imports JAX

    export_gguf(bundle, Path(words[0]), encoding or "f16")
