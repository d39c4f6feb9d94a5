"""`lifecycle export`: a training stage's weights as a bundle, registered, or its adapter alone; or a bundle in another
format."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lifecycle.cli.arguments import ConfigOrBundle, name_first, read_config
from lifecycle.cli.make import make
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import errors_are_shared

GGUF, STABLEHLO = ".gguf", ".stablehlo"

type Words = Annotated[
    str,
    Parameter(
        help="Of a run: a training stage, if it is not the run's own choice; then settings, as key=value. Of a bundle: "
        "what to write, the file OUT.gguf or the folder OUT.stablehlo."
    ),
]
type Encoding = Annotated[
    Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"] | None,
    Parameter(help="How matrices are stored: f16 by default in GGUF; f32 or bf16 in StableHLO's weights."),
]
type AdapterOut = Annotated[
    Path | None, Parameter(help="A new folder for the adapter that the stage has trained, as PEFT reads it, alone.")
]


@errors_are_shared()
def export(
    config_or_bundle: ConfigOrBundle, /, *words: Words, encoding: Encoding = None, adapter: AdapterOut = None
) -> None:
    """Exports and registers a training stage's weights, by default those of `export.of`, or writes its adapter alone;
    or writes a bundle as a GGUF file, for llama.cpp, or as StableHLO programs, for JAX alone."""
    if config_or_bundle.is_dir():
        if adapter is not None:
            raise ConfigError(f"{config_or_bundle} is a bundle; --adapter is of a run's stage")
        _export_bundle(config_or_bundle, words, encoding)
        return
    if encoding is not None:
        raise ConfigError(
            f"--encoding is of what is written from a bundle; export {config_or_bundle} first, then: lifecycle export "
            "BUNDLE OUT.gguf"
        )
    stage, overrides = name_first(words)
    if adapter is not None:
        from lifecycle.cli.export_adapter import export_adapter  # imports JAX

        config = read_config(config_or_bundle, overrides)
        export_adapter(config, stage or config.exported, adapter)
        return
    chosen = () if stage is None else (f"export.of={stage}",)
    make(
        read_config(config_or_bundle, (*overrides, *chosen)),
        ["export", "register"],
        [str(config_or_bundle), *overrides],
    )


def _export_bundle(bundle: Path, words: tuple[str, ...], encoding: Encoding) -> None:
    if len(words) != 1 or not words[0].endswith((GGUF, STABLEHLO)):
        raise ConfigError(
            f"{bundle} is a bundle; say what to write: lifecycle export BUNDLE OUT{GGUF}, or OUT{STABLEHLO}"
        )
    out = Path(words[0])
    if out.suffix == GGUF:  # each imports JAX
        from lifecycle.cli.export_gguf import export_gguf

        export_gguf(bundle, out, encoding or "f16")
    else:
        from lifecycle.cli.export_stablehlo import export_stablehlo

        export_stablehlo(bundle, out, encoding or "f32")
