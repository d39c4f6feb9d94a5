"""`lifecycle data`: the data of the training stages, and what became of a document."""

import json
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lifecycle.cli.arguments import AsJson, ConfigPath, Overrides, read_config
from lifecycle.cli.display import print_json
from lifecycle.cli.make import make
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import errors_are_shared
from lifecycle.stages.chain import finished_stage
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, present

data = App(name="data", help="Prepare documents, token shards and rows; say what became of a document.")

type DocumentName = Annotated[
    str, Parameter(help="The document's id or its beginning, its path, or source:path, as reasons name it.")
]


@data.default
@errors_are_shared()
def make_data(config: ConfigPath, /, *overrides: Overrides) -> None:
    """Brings the run's documents, token shards and rows up to date; rows only if there is something to make them of."""
    run = read_config(config, overrides)
    rows = ["rows"] if run.has_rows else []
    make(run, present(build_graph(run), "documents", "tokens", *rows), [str(config), *overrides])


@data.command
def why(config: ConfigPath, document: DocumentName, /, *overrides: Overrides, as_json: AsJson = False) -> None:
    """Prints what each step measured of a document, what it changed, and why the document was removed or kept."""
    found = _fates(read_config(config, overrides), document)
    if as_json:
        print_json(found)
        return
    console = Console()
    for fate in found:
        _show(console, fate)


def _fates(run: RunConfig, name: str) -> list[dict[str, Any]]:
    from lifecycle.data.fate import find_documents, passages, unread
    from lifecycle.data.filters import document_steps
    from lifecycle.data.tagging import read_reading

    if run.data is None:
        raise ConfigError(f"the run {run.name} has no section data, so it selects no documents")
    folder, steps = finished_stage(run, "documents").path, document_steps(run.data)
    found = [
        {
            **{column: fate.row[column] for column in ("id", "source", "path", "license", "format", "language")},
            "meta": json.loads(fate.row["meta"]),
            "result": fate.split,
            "removed_by": fate.row["step"],
            "steps": [
                {"step": passed.step, "measured": passed.measured, "reasons": passed.reasons}
                for passed in passages(fate, steps)
            ],
            "text": fate.row["text"],
        }
        for fate in find_documents(folder, name)
    ]
    for entry in unread(read_reading(finished_stage(run, "tagging").path).skipped, name):
        why_not = {"reason": entry.reason, "detail": entry.detail}
        found.append({"source": entry.source, "path": entry.path, "result": "not read", **why_not})
    if not found:
        raise ConfigError(
            f"no document is named {name!r} in {folder}: give an id or its first six digits or more, a path below its "
            "source, or source:path; rows of files are PATH:NUMBER"
        )
    return found


def _show(console: Console, fate: dict[str, Any]) -> None:
    if fate["result"] == "not read":
        console.print(f"{fate['source']}:{fate['path']}: not read: {fate['reason']}: {fate['detail']}", markup=False)
        return
    outcome = f"removed by {fate['removed_by']}" if fate["removed_by"] else fate["result"]
    named = f"{fate['id']}  {fate['source']}:{fate['path']}  {fate['license']}  {fate['language']}"
    console.print(f"{outcome}: {named}", markup=False, soft_wrap=True)
    table = Table(box=None, header_style="bold")
    for column in ("step", "measured and changed", "removed because"):
        table.add_column(column, overflow="fold")
    for passed in fate["steps"]:
        table.add_row(passed["step"], *(escape("\n".join(passed[part])) for part in ("measured", "reasons")))
    console.print(table)
