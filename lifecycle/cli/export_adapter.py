"""`lifecycle export CONFIG STAGE --adapter OUT`: the adapter that a training stage has trained, in PEFT's form."""

from pathlib import Path

from lifecycle.cli.open_model import start_jax
from lifecycle.cli.terminal import terminal
from lifecycle.core.config import ConfigError
from lifecycle.core.file_hashes import FileHashes
from lifecycle.stages.adapters import base_of, write_adapter
from lifecycle.stages.chain import finished_stage, require_intact
from lifecycle.stages.config import RunConfig


def export_adapter(config: RunConfig, stage: str, out: Path) -> None:
    """Writes the folder of a finished stage's adapter. Raises `ConfigError` for a stage that trains none, and for a
    folder that is not empty."""
    config.require_stage(stage)
    if config.train[stage].adapter is None:
        raise ConfigError(f"train.{stage} trains no adapter; leave out --adapter")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already; give --adapter a new folder")
    start_jax(config.folder)
    trained = finished_stage(config, stage)
    require_intact(trained, FileHashes(config.folder))
    base = base_of(config, stage)
    write_adapter(config.trained_model(stage), trained, out, base)
    terminal().print(f"written: {out}, beside the weights of {base}", highlight=False, markup=False, soft_wrap=True)
