"""`lifecycle VERB CONFIG [key=value ...]`: every stage of a model's life from one command line.

Verbs that make something (`data` ... `run`) bring their artifacts up to date and what those need. The others read:
`plan` says what a run would do, `trace` where a version came from, `serve` and `chat` answer from the registry.
"""

import errno
import json
import os
import sqlite3
import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, NoReturn

import cyclopts
from cyclopts import Parameter
from rich.console import Console

from lifecycle import __version__
from lifecycle.core.config import ConfigError, load_config
from lifecycle.stages.config import RunConfig

app = cyclopts.App(name="lifecycle", version=__version__, help="A language model's whole life, one verb at a time.")

type ConfigPath = Annotated[Path, Parameter(help="The run's YAML file.")]
type Overrides = Annotated[str, Parameter(help="Settings to change, as key=value: train.chat.steps=100")]

type VersionOrOverrides = Annotated[
    str,
    Parameter(help="A version: alias, hash or its beginning (production if none is given); then key=value settings"),
]

imports = cyclopts.App(name="import", help="Make a bundle of a published model: weights, tokenizer, chat template.")
app.command(imports)

type Out = Annotated[Path, Parameter(help="The bundle's folder; it must not be there yet.")]
type Dtype = Literal["float32", "float16", "bfloat16"]
type TokenizerPath = Annotated[Path | None, Parameter(help="A folder whose tokenizer is taken instead of its own.")]

# XLA's client for CPUs logs through this; errors stay visible
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "GRPC_VERBOSITY": "ERROR"}

MAKERS = {
    "data": "Prepare documents, token shards and chat rows.",
    "tokenizer": "Train or load the tokenizer.",
    "evaluate": "Evaluate the weights after each training stage; or a bundle, on the tasks of a file.",
    "export": "Write the bundle, register it, promote it if the gate passes.",
    "report": "Write the report, bringing the whole chain up to date.",
    "run": "The whole life: from documents to a registered model and its report.",
}


def read_config(path: Path, overrides: tuple[str, ...]) -> RunConfig:
    return load_config(RunConfig, path, overrides)


def _maker(verb: str) -> None:
    def make(config: ConfigPath, /, *overrides: Overrides) -> None:
        from lifecycle.cli.make import make as bring  # JAX starts only for verbs that need it

        bring(verb, read_config(config, overrides), config, overrides)

    app.command(make, name=verb, help=MAKERS[verb])


for _verb in MAKERS:
    if _verb not in ("evaluate", "run"):
        _maker(_verb)


@app.command(help=MAKERS["run"])
def run(
    config: ConfigPath,
    /,
    *overrides: Overrides,
    until: Annotated[str | None, Parameter(help="The stage to stop after: a training stage, documents, ...")] = None,
) -> None:
    from lifecycle.cli.make import make

    make("run", read_config(config, overrides), config, overrides, until)


@app.command(help=MAKERS["evaluate"])
def evaluate(
    config: Annotated[Path, Parameter(help="The run's YAML file, or a bundle's folder.")],
    /,
    *tasks_or_overrides: Annotated[
        str, Parameter(help="For a bundle: the YAML file of tasks; then key=value settings")
    ],
) -> None:
    if not config.is_dir():
        from lifecycle.cli.make import make

        make("evaluate", read_config(config, tasks_or_overrides), config, tasks_or_overrides)
        return
    if not tasks_or_overrides or "=" in tasks_or_overrides[0]:
        raise ConfigError(f"{config} is a bundle: name the file of tasks next, as in: lifecycle evaluate BUNDLE TASKS")
    from lifecycle.cli.evaluate_bundle import evaluate_bundle

    evaluate_bundle(config, Path(tasks_or_overrides[0]), tasks_or_overrides[1:])


@app.command
def plan(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Say what a run would find and make; with topology=v5p:4x4x4, what the TPU compiler says of its steps."""
    from lifecycle.cli.plan import show_plan

    show_plan(config, overrides, Console())


@app.command
def trace(config: ConfigPath, /, *version_or_overrides: VersionOrOverrides, json: bool = False) -> None:
    """Print the chain behind a version or an alias, down to the data filters and the source files."""
    from lifecycle.cli.trace import show_trace

    version, overrides = _version_first(version_or_overrides)
    show_trace(read_config(config, overrides), version, json)


@app.command
def serve(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Answer by HTTP, OpenAI's way, with the registry's aliases as models."""
    from lifecycle.cli.serve import serve as start

    start(read_config(config, overrides))


@imports.command
def gguf(source: Path, out: Out, /, *, dtype: Dtype = "float32", tokenizer: TokenizerPath = None) -> None:
    """Read a GGUF file of a Llama, quantised or not."""
    from lifecycle.cli.import_weights import import_gguf

    import_gguf(source, out, dtype, tokenizer)


@imports.command
def safetensors(source: Path, out: Out, /, *, dtype: Dtype | None = None, tokenizer: TokenizerPath = None) -> None:
    """Read a folder with safetensors and config.json, of any family; tensors keep their dtype unless one is given."""
    from lifecycle.cli.import_weights import import_safetensors

    import_safetensors(source, out, dtype, tokenizer)


@app.command
def chat(
    config: Annotated[Path, Parameter(help="The run's YAML file, or a bundle's folder.")],
    /,
    *version_or_overrides: VersionOrOverrides,
) -> None:
    """Talk to a version, or to a bundle, in the terminal."""
    from lifecycle.cli.chat import chat as talk
    from lifecycle.cli.chat import chat_with_bundle

    if config.is_dir():
        chat_with_bundle(config)
        return
    version, overrides = _version_first(version_or_overrides)
    talk(read_config(config, overrides), version)


@app.command
def versions(config: ConfigPath, /, *overrides: Overrides) -> None:
    """List the registered versions, their aliases and evaluations."""
    from lifecycle.cli.operate import show_versions

    show_versions(read_config(config, overrides))


@app.command
def promote(config: ConfigPath, version: str, /, *overrides: Overrides) -> None:
    """Move the production alias to a version, if no evaluation falls significantly below the current one's."""
    from lifecycle.cli.operate import promote as move

    move(read_config(config, overrides), version)


@app.command
def rollback(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Move the production alias back to the version before."""
    from lifecycle.cli.operate import rollback as back

    back(read_config(config, overrides))


@app.command
def usage(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Print what the served requests were: counts, tokens, cost and latency by day and version."""
    from lifecycle.cli.operate import show_usage

    show_usage(read_config(config, overrides))


@app.command
def schema() -> None:
    """Print the JSON schema of a run file, for editors."""
    json.dump(RunConfig.model_json_schema(), sys.stdout, indent=1)
    sys.stdout.write("\n")


def _version_first(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The version's name, `production` where the first word is a setting already, and the settings."""
    if words and "=" not in words[0]:
        return words[0], words[1:]
    return "production", words


def main() -> None:
    """Runs the command line; a user's mistake ends it with one message and status 1, never a traceback."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    sys.excepthook = _traceback_and_leave
    sys.unraisablehook = _unless_of_a_failed_save
    try:
        app()
    except ValueError as error:  # ConfigError and its kind: what users can mend
        _say(str(error), style="red")
        _leave(1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _say(f"{error}; choose a folder that may be written with root=FOLDER", style="red")
            _leave(1)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say(f"{error}; make room and run the same command again: it goes on from here", style="red")
        _leave(1)
    except sqlite3.OperationalError as error:  # of the registry or the request log: locked, or the disk is full
        _say(f"{error}; mend that and run the same command again: it goes on from here", style="red")
        _leave(1)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
        _leave(130)


def _say(message: str, style: str | None = None) -> None:
    Console(stderr=True).print(f"lifecycle: {message}", style=style, markup=False, highlight=False)


def _leave(status: int) -> NoReturn:
    """Ends this process. In a job of several it ends at once: JAX would wait at exit for the others, and they wait for
    this one in a collective."""
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _traceback_and_leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    _leave(1)


def _unless_of_a_failed_save(unraisable: "sys.UnraisableHookArgs") -> None:
    """A checkpoint that could not be written is told once, by `CheckpointError`; each of its arrays still on the way
    to disk would add a traceback from the storage library's threads, which find Orbax's event loop closed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
