"""`lifecycle VERB CONFIG [key=value ...]`: every stage of a model's life from one command line.

Verbs that make something (`run`, `data`, `tokenizer`, `evaluate`, `export`, `report`) bring their artifacts and the
inputs of these up to date. `plan` shows what a run would do, `doctor` what a stage makes of its rows, `trace` where a
version came from; `serve`, `chat` and `generate` answer; `promote` and `rollback` move an alias. Each verb has its own
file in this folder, imported only when it is called.
"""

import errno
import os
import signal
import sqlite3
import sys
from types import FrameType, TracebackType
from typing import NoReturn

import cyclopts

from lifecycle.cli.standard_output import (
    STATUS,
    ReaderLeft,
    flush_standard_output,
    send_nowhere,
    watch_standard_output,
)
from lifecycle.cli.terminal import terminal
from lifecycle.core.distributed import has_joined, is_shown_by_first, process_index, show_error, speaker
from lifecycle.core.rendezvous import JobError
from lifecycle.core.stopping import RESTART_STATUS, Stopped, failure_status, sent_again
from lifecycle.core.version import VERSION

# XLA's CPU client logs through these; errors stay visible
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "GRPC_VERBOSITY": "ERROR"}

VERBS = {
    "run": "Run everything, from documents to a registered model and its report, or up to one stage.",
    "data": "Prepare documents, token shards and rows; plan, report, peek, diff and why show them.",
    "tokenizer": "Train or load the tokenizer.",
    "evaluate": "Evaluate a run's training stages, or a bundle on the tasks of a file.",
    "export": "Write a training stage's bundle and register it; or a bundle as GGUF or StableHLO.",
    "report": "Write the report, bringing the run up to date; while another process does, what the run has so far.",
    "watch": "Show a run's training stages as they go on: curves, speed, memory, where the time goes.",
    "compare": "Draw the curves of several runs in one page, with the settings that differ.",
    "profile": "Print the operations that took the most time in steps traced with profile=FIRST-LAST.",
    "track": "Write a run's metrics for TensorBoard, MLflow or W&B.",
    "plan": "Show what a run would do; with topology=v5p:4x4x4, compile its steps for TPUs.",
    "doctor": "Print a training stage's rows as the model sees them, what is dropped and why, lengths, packing.",
    "launch": "Print the manifest that runs a config on a Kubernetes cluster: topology=v5p:4x4x4 --image IMAGE.",
    "scaling": "Train a ladder of small models, fit the loss law, and predict the run's loss, tokens and cost.",
    "trace": "Print the chain behind a version, a stage or an artifact, down to the filters and the source files.",
    "chat": "Talk to a training stage, a version or a bundle in the terminal.",
    "generate": "Answer prompts, or the rows of a file, with a training stage, a version or a bundle.",
    "serve": "Serve OpenAI's API over HTTP, with the registry's aliases as models, or one bundle.",
    "quantise": "Make a bundle's matrices int4, calibrated on texts.",
    "register": "Make a bundle from outside the run, for example an imported one, a version of its registry.",
    "versions": "List the registered versions, their aliases and evaluations.",
    "promote": "Move the production alias to a version, if no evaluation drops significantly below the current one's.",
    "rollback": "Move the production alias back to the previous version.",
    "usage": "Print the served requests: counts, tokens, cost and latency by day and version.",
    "schema": "Print the JSON schema of a run file, for editors.",
}
IMPORT = "Make a bundle of a published model: weights, tokenizer, chat template."

app = cyclopts.App(
    name="lifecycle", version=VERSION, help="A language model's life cycle, one verb at a time.", console=terminal()
)
for _verb, _help in VERBS.items():
    app.command(f"lifecycle.cli.{_verb}:{_verb}", name=_verb, help=_help)
app.command("lifecycle.cli.import_weights:import_model", name="import", help=IMPORT)


def main() -> None:
    """Runs the command line; a user's mistake ends it with one message and status 1, never a traceback."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGTERM, _stop)
    sys.excepthook = _traceback_and_leave
    sys.unraisablehook = _tell_unraisable
    watch_standard_output()
    try:
        try:
            app()
        except SystemExit:
            flush_standard_output()
            raise
        flush_standard_output()
    except ReaderLeft:
        send_nowhere(sys.stdout)
        _leave(STATUS)
    except JobError as error:
        if error.is_told:
            _leave(failure_status(error))
        _fail(error)
    except ValueError as error:  # ConfigError and the like: users can fix them
        _fail(error)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _fail(error, "choose a writable folder with root=FOLDER")
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP):
            _fail(error, "remove what is there, or choose another path")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(error, "free some space and run the same command again: it continues from here")
    except sqlite3.OperationalError as error:  # registry or request log: locked, or the disk is full
        _fail(error, "fix that and run the same command again: it continues from here")
    except KeyboardInterrupt:
        _say_once("stopped; the same command continues from here")
        _leave(130)
    except Stopped as stopped:
        _say_once(f"{stopped}; the same command continues from here")
        _leave(RESTART_STATUS)


def _fail(error: Exception, fix: str = "") -> NoReturn:
    """Says a user's mistake, once in a job whose processes all make it, and ends."""
    message = f"{error}; {fix}" if fix else str(error)
    if not has_joined():
        _say(message, style="red")
    elif process_index() == 0:
        _say(message, style="red")
        show_error(message)
    elif not is_shown_by_first(message):
        _say(message, style="red")
    _leave(failure_status(error))


def _say(message: str, style: str | None = None) -> None:
    """A message of this process, with its index if the job has others."""
    terminal(stderr=True).print(f"lifecycle: {speaker()}{message}", style=style, markup=False, highlight=False)


def _say_once(message: str) -> None:
    """A message that all processes of the job have."""
    if process_index() == 0:
        _say(message)


def _leave(status: int) -> NoReturn:
    """Ends this process. In a job of several it exits at once: JAX would wait at exit for the others, which wait for
    this one in a collective."""
    if has_joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM where nothing saves its work in parts: what is unfinished is lost, as in a kill."""
    raise Stopped("stopped by SIGTERM")


def _traceback_and_leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if who := speaker():
        print(f"lifecycle: {who}", file=sys.stderr)
    sys.__excepthook__(kind, error, trace)
    _leave(failure_status(error))


def _tell_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints what nobody could raise, but for a signal, which is sent again, and the aftermath of a failed save, which
    `CheckpointError` reports once: for each array still on its way to disk, the storage library's threads would print a
    traceback about Orbax's closed event loop."""
    if not sent_again(unraisable) and str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
