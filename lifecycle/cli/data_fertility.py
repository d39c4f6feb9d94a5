"""`lifecycle data fertility`: the run's tokenizer beside others, on the run's held-out documents."""

from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lifecycle.cli.arguments import AsJson, ConfigPath, Overrides, read_config
from lifecycle.cli.display import in_line, print_json, progress_on
from lifecycle.cli.documents import CorpusName, chosen_corpus, documents_of
from lifecycle.cli.terminal import terminal
from lifecycle.stages.chain import finished_stage

OWN = "this run"

type Against = Annotated[
    tuple[str, ...],
    Parameter(
        help="Tokenizers to compare with: bundles, other folders, files tokenizer.json or *.model, or their addresses.",
        consume_multiple=True,
    ),
]


def fertility(
    config: ConfigPath, /, *overrides: Overrides, against: Against = (), corpus: CorpusName = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Prints bytes per token and tokens per word of the held-out documents, by language and by source; a token more in
    every ten is a tenth less text in a context, and a tenth more time in training and inference."""
    from lifecycle.data.documents import read_documents
    from lifecycle.text.fertility import COLUMNS, as_rows, sizes
    from lifecycle.text.tokenizer import load_tokenizer, tokenizer_at

    run = read_config(config, overrides)
    documents, own = documents_of(run, chosen_corpus(run, corpus)).path, finished_stage(run, "tokenizer").path
    tokenizers = {OWN: load_tokenizer(own), **{name: load_tokenizer(tokenizer_at(name)) for name in against}}
    found = {}
    with progress_on(terminal(stderr=True)) as progress:
        for number, (name, tokenizer) in enumerate(tokenizers.items()):
            progress.start(f"encoding held-out documents with {name}", len(tokenizers))
            progress.update(number)
            found[name] = as_rows(sizes(tokenizer, read_documents(documents, "heldout", COLUMNS)))
    if as_json:
        print_json([
            {"tokenizer": name, "vocab_size": tokenizer.vocab_size, "groups": found[name]}
            for name, tokenizer in tokenizers.items()
        ])  # fmt: skip
        return
    _show(terminal(), found, {name: tokenizer.vocab_size for name, tokenizer in tokenizers.items()})


def _show(console: Console, found: dict[str, list[dict[str, Any]]], vocab_sizes: dict[str, int]) -> None:
    for number, name in enumerate(found, 1):
        whole = found[name][0]  # of all documents
        lost = f"; {whole['unknown_tokens']:,} of {whole['tokens']:,} tokens stand for text that it cannot write"
        said = f"[{number}] {in_line(name)}: {vocab_sizes[name]:,} ids{lost if whole['unknown_tokens'] else ''}"
        console.print(said, markup=False, soft_wrap=True)
    for figure in ("bytes_per_token", "tokens_per_word"):
        table = Table(title=figure.replace("_", " "), title_justify="left", box=None, header_style="bold")
        for column in ("of", "name", "documents", "MB", *(f"[{number}]" for number in range(1, len(found) + 1))):
            table.add_column(escape(column), justify="left" if column in ("of", "name") else "right")
        for rows in zip(*found.values(), strict=True):  # the same groups in the same order, which bytes decide
            first, figures = rows[0], [row[figure] for row in rows]
            if any(value is not None for value in figures):
                table.add_row(
                    first["of"], escape(in_line(first["name"])), f"{first['documents']:,}",
                    f"{first['bytes'] / 1e6:,.2f}", *(f"{value:.2f}" for value in figures),
                )  # fmt: skip
        console.print(table)
