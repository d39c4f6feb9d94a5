"""Shared by the verbs that make something: bring artifacts up to date, set up JAX if a stage runs, print the results.

A run that is up to date never imports JAX.
"""

import shlex
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lifecycle.cli.display import progress_on
from lifecycle.cli.terminal import terminal
from lifecycle.core import distributed
from lifecycle.core.artifact import Artifact
from lifecycle.core.config import digest
from lifecycle.core.files import is_writable
from lifecycle.core.progress import Silent
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig

COMPILED = "compiled"  # XLA's compiled programs, kept with the artifacts: a second run compiles nothing
BUNDLES = "bundles"  # the folder in the user's cache for those of bundles outside any run


def start_jax(folder: Path, same: Mapping[str, str] | None = None, kept_from_s: float = 0.5) -> None:
    """Joins the job, if there is one, in which `same` is the same everywhere, and enables the persistent compilation
    cache, for what takes at least `kept_from_s` to compile; a read-only one is read."""
    distributed.start(same)
    import jax

    if not is_writable(folder):
        warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str((folder / COMPILED).absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", kept_from_s)


def make(
    config: RunConfig, targets: Iterable[str], words: Iterable[str], takes_over: bool = True
) -> dict[str, Artifact]:
    """Brings the targets up to date, prints their folders and returns them, in one process of a job; `words`: the
    config's path and settings as given; `takes_over` as in `bring_up_to_date`."""
    targets = tuple(targets)
    same = {"config": digest(config.plain())[:12], "stages": " ".join(targets)}
    distributed.start(same)  # before `is_writer` is asked
    console = terminal()  # an answer's `:x:` is text
    with progress_on(console) if distributed.is_writer() else nullcontext(Silent()) as progress:  # one process speaks
        artifacts = bring_up_to_date(config, targets, progress, lambda: start_jax(config.folder), takes_over)
    if not distributed.is_writer():
        return {}
    made = {name: artifacts[name] for name in targets}
    console.print(_summary(made))
    if "report" in targets:
        _say_what_next(console, artifacts["report"], shlex.join(words))
    return made


def _summary(artifacts: dict[str, Artifact]) -> Table:
    table = Table(box=None, header_style="bold")
    for column in ("artifact", "content", "wall s", "core s", "folder"):
        table.add_column(column, overflow="fold")
    for name, artifact in artifacts.items():
        m = artifact.manifest
        table.add_row(name, m.content_hash[:12], f"{m.wall_s:.1f}", f"{m.cpu_s:.1f}", str(artifact.path))
    return table


def _say_what_next(console: Console, report: Artifact, run: str) -> None:
    for sample in report.stats["samples"][:3]:
        console.print(f"\nQ  {sample['question']}\nA  {sample['answer']}", markup=False, highlight=False)
    console.print(f"\nreport  {report.path / 'report.html'}", markup=False)
    for verb in ("chat", "serve", "trace"):
        console.print(f"{verb:<7} uv run lifecycle {verb} {run}", markup=False, highlight=False)
