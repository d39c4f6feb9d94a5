"""The verbs that make something: set JAX up, bring the artifacts up to date, say what there is now."""

import shlex
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from lifecycle.cli.display import progress_on
from lifecycle.core import distributed
from lifecycle.core.artifact import Artifact
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import EVALUATE, RunConfig
from lifecycle.stages.graph import build_graph, present

COMPILED = "compiled"  # XLA's programs, kept beside the artifacts: a second run compiles nothing


def start_jax(folder: Path) -> None:
    """Joins the job, if there is one, and turns the persistent compilation cache on."""
    distributed.start()
    jax.config.update("jax_compilation_cache_dir", str((folder / COMPILED).absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def targets(verb: str, config: RunConfig, until: str | None = None) -> tuple[str, ...]:
    """The stages that a verb brings up to date."""
    graph = build_graph(config)
    if verb == "run":
        return (until or "report",)
    verbs = {
        "data": present(graph, "documents", "tokens", "rows"),
        "tokenizer": ("tokenizer",),
        "evaluate": (*present(graph, "baseline"), *(EVALUATE + name for name in config.evaluated)),
        "export": ("export", "register"),
        "report": ("report",),
    }
    return verbs[verb]


def make(verb: str, config: RunConfig, path: Path, overrides: tuple[str, ...], until: str | None = None) -> None:
    """Brings what `verb` stands for up to date and prints where it is; path and overrides: as the user gave them."""
    start_jax(config.folder)
    console = Console(emoji=False)  # an answer's `:x:` is text
    with progress_on(console) as progress:
        wanted = targets(verb, config, until)
        artifacts = bring_up_to_date(config, wanted, progress)
    if not distributed.is_writer():
        return
    console.print(_summary({name: artifacts[name] for name in wanted}))
    if "report" in artifacts:
        _say_what_next(console, artifacts["report"], shlex.join([str(path), *overrides]))


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
