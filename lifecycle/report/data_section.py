"""The section on data: funnel, tokenizer, token shards, rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lifecycle.data.selecting.contamination import FILE, Evidence, Key
from lifecycle.report.blocks import BarChart, Block, Charts, Facts, ReportSection, Table
from lifecycle.report.format import count, counts, share, significant, size
from lifecycle.report.numbers import Data

SAMPLES_PER_STEP = 3
SAMPLE_CHARS = 200
HIT_ROWS = 100  # of each task, and of the held-out documents, that are shown of what was found


def data_section(corpus: str, data: Data) -> ReportSection:
    """The funnel, the sources, and examples of removed documents of a corpus, which may be called ""."""
    stats = data.stats
    blocks: list[Block] = [
        funnel_drawing(data.funnel),
        funnel_table(data.funnel),
        _sources(stats, data.sources),
    ]
    samples = _samples(data.funnel)
    if samples.rows:
        blocks.append(samples)
    if stats["skipped_files"]:
        rows = tuple((line,) for line in stats["skipped_files"])
        blocks.append(
            Table(f"Files that were skipped: {count(stats['skipped'])}", ("file and reason",), rows, folded=True)
        )
    anchor, title = (f"data-{corpus}", f"Data: {corpus}") if corpus else ("data", "Data")
    return ReportSection(anchor, title, tuple(blocks))


def tokenizer_section(stats: Mapping[str, Any], tokens: Mapping[str, Any] | None) -> ReportSection:
    """The tokenizer and, if the run has any, its token shards."""
    facts = {
        "kind": " ".join(str(stats[name]) for name in ("kind", "model_type") if stats.get(name)),
        "vocabulary": count(stats["vocab_size"]),
        "bytes per token on held-out text": significant(held) if (held := stats.get("heldout_bytes_per_token")) else "",
        "special tokens": " ".join(stats.get("special_tokens", ())),
        "trained on": size(stats["sample_bytes"]) if stats.get("sample_bytes") else "",
        "fingerprint": stats["fingerprint"][:12],
    }
    blocks: list[Block] = [Facts(_given(facts))]
    if fertility := stats.get("fertility"):
        blocks.append(_fertility(fertility))
    if tokens is not None:
        blocks.append(_shards(tokens))
        if sorted_corpora := tokens.get("topics"):
            blocks.append(_topics(tokens["source_tokens"], sorted_corpora))
    return ReportSection("tokenizer", "Tokenizer", tuple(blocks))


def rows_section(stats: Mapping[str, Any]) -> ReportSection:
    """Files of rows, what became of the user's own, and examples."""
    blocks: list[Block] = []
    if files := stats.get("rows", {}):
        rows = tuple((name, count(n)) for name, n in files.items())
        blocks.append(Table("Rows made from docstrings", ("file", "rows"), rows, ("rows",)))
    if tasks := stats.get("reasoning_gym", ()):
        blocks.append(_gym_tasks(tasks))
    if own := stats.get("own", {}):
        blocks += _own_rows(own)
    if stats.get("left_out"):
        reasons = stats["left_out"]
        rows = tuple((split, counts(reasons[split])) for split in reasons)
        blocks.append(Table("Docstrings read, and why some gave no row", ("split", "counts"), rows, folded=True))
    if stats.get("samples"):
        blocks.append(_row_samples(stats["samples"]))
    return ReportSection("rows", "Rows", tuple(blocks))


def _gym_tasks(tasks: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("task", "train", "held out", "dropped")
    rows = tuple((of["task"], count(of["kept"]), count(of["heldout"]), counts(of["dropped"])) for of in tasks)
    return Table("Prompts made by tasks of reasoning-gym", columns, rows, columns[1:3])


def _own_rows(own: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    columns = ("kind", "rows read", "kept", "train", "held out", "dropped")
    rows = tuple(
        (kind, *(count(of[name]) for name in ("rows", "kept", "train", "heldout")), counts(of["dropped"]))
        for kind, of in own.items()
    )
    blocks: list[Block] = [Table("Own rows", columns, rows, columns[1:5])]
    if dropped := tuple((example,) for of in own.values() for example in of["examples"]):
        blocks.append(Table("Own rows that were dropped", ("row and reason",), dropped, folded=True))
    return blocks


def _fertility(groups: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("of", "name", "documents", "text", "bytes per token", "tokens per word")
    rows = tuple(
        (
            of["of"], of["name"], count(of["documents"]), size(of["bytes"]), significant(of["bytes_per_token"]),
            "" if of["tokens_per_word"] is None else significant(of["tokens_per_word"]),
        )
        for of in groups
    )  # fmt: skip
    return Table(
        "Held-out text in tokens, by language and by source", columns, rows, columns[2:], folded=len(rows) > 20
    )


def _shards(tokens: Mapping[str, Any]) -> Table:
    columns = ("split", "documents", "tokens", "text", "unknown tokens")
    rows = tuple(
        (
            name,
            count(split["documents"]),
            count(split["tokens"]),
            size(split["text_bytes"]),
            count(split["unknown_tokens"]),
        )
        for name, split in tokens["splits"].items()
    )
    return Table(f"Token shards ({tokens['dtype']})", columns, rows, columns[1:])


def _topics(of_splits: Mapping[str, Mapping[str, int]], sorted_corpora: Mapping[str, Mapping[str, int]]) -> Table:
    """The tokens of each source and topic; the title says how many documents of the corpora have no topic."""
    columns = ("source", *of_splits)
    names = sorted({name for tokens in of_splits.values() for name in tokens})
    rows = tuple((name, *(count(tokens.get(name, 0)) for tokens in of_splits.values())) for name in names)
    without = sum(of["without"] for of in sorted_corpora.values())
    return Table(
        f"Tokens by topic; documents without one: {count(without)}", columns, rows, columns[1:], folded=len(rows) > 20
    )


def funnel_table(steps: Sequence[Mapping[str, Any]], tokens: Sequence[float] = ()) -> Table:
    """The steps, with what went in and came out; `tokens`: an estimate of those that came out of each step."""
    estimates = ("tokens in (estimate)", "tokens out (estimate)") if tokens else ()
    columns = ("step", "in", "out", "text in", "text out", "of the text read", *estimates, "removed", "edited")
    read = steps[0]["bytes_out"]
    rows = []
    for at, step in enumerate(steps):
        entered = f"{count(step['files_in'])} files" if "files_in" in step else count(step["documents_in"])
        flow = (count(tokens[at - 1]) if at else "", count(tokens[at])) if tokens else ()
        rows.append((
            step["step"].replace("_", " "), entered, count(step["documents_out"]), size(step["bytes_in"]),
            size(step["bytes_out"]), share(step["bytes_out"] / read), *flow,
            counts(step["reasons"]), counts(step["edits"]),
        ))  # fmt: skip
    return Table("Funnel: documents and text through each step", columns, tuple(rows), columns[1:-2])


def funnel_drawing(steps: Sequence[Mapping[str, Any]]) -> Charts:
    """The text that is left after each step."""
    bars = tuple((step["step"].replace("_", " "), step["bytes_out"], size(step["bytes_out"])) for step in steps)
    return Charts((BarChart("Text left", "after each step", bars),))


def contamination_table(
    tasks: Mapping[str, Mapping[str, int]], scores: Mapping[str, str] | None = None, corpus: str = ""
) -> Table:
    """How many rows of each task were in training documents, before and after decontamination. `scores`: a result of
    each task, to be shown beside."""
    columns = ("task", "rows", "long enough to compare", "found in documents", "documents", "left in documents")
    names = ("rows", "compared", "found", "documents", "left")
    rows = tuple(
        (task, *(count(of[name]) for name in names), *([] if scores is None else [scores.get(task, "")]))
        for task, of in tasks.items()
    )
    columns += () if scores is None else ("result",)
    return Table(
        f"Rows of tasks in {_training_documents(corpus)}, before and after decontamination", columns, rows, columns[1:]
    )


def hits_of_tasks(evidence: Mapping[Key, Evidence], corpus: str = "") -> Iterator[Table]:
    """What was found of each task, row by row."""
    of_tasks: dict[str, dict[str, Evidence]] = {}
    for (task, item), of in evidence.items():
        if task is not None:
            of_tasks.setdefault(task, {})[item] = of
    for task, items in sorted(of_tasks.items()):
        yield _hits(items, "row", f"Rows of {task}", corpus)


def hits_of_heldout(evidence: Mapping[Key, Evidence]) -> Iterator[Table]:
    """What was found of held-out documents."""
    if items := {item: of for (task, item), of in evidence.items() if task is None}:
        yield _hits(items, "held-out document", "Held-out documents", "")


def _hits(evidence: Mapping[str, Evidence], what: str, whose: str, corpus: str) -> Table:
    shown = [*evidence.items()][:HIT_ROWS]
    rows = tuple(
        (item, count(of.num_documents), counts(of.outcomes), of.document, share(of.share), of.excerpt)
        for item, of in shown
    )
    columns = (what, "documents", "what became of them", "the nearest", "in common", "the longest passage")
    caption = f"{whose} found in {_training_documents(corpus)}: {count(len(evidence))}"
    if others := len(evidence) - len(rows):
        caption += f"; those in the most documents are shown, {FILE} has {count(others)} more"
    return Table(caption, columns, rows, (columns[1], columns[4]), folded=True)


def _training_documents(corpus: str) -> str:
    return f"training documents of {corpus}" if corpus else "training documents"


def _sources(stats: Mapping[str, Any], files: Mapping[str, Any]) -> Table:
    columns = ("source", "files", "bytes read", "content", "documents kept", "text kept", "license")
    rows = []
    for name, read in files.items():
        kept = stats["sources"].get(name, {"documents": 0, "bytes": 0, "license": ""})
        rows.append((
            name, count(read["files"]), size(read["bytes"]), read["sha256"][:12],
            count(kept["documents"]), size(kept["bytes"]), kept["license"] or "",
        ))  # fmt: skip
    return Table("Sources", columns, tuple(rows), ("files", "bytes read", "documents kept", "text kept"))


def _samples(steps: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("step", "document", "reason", "detail", "begins with")
    rows = [
        (
            step["step"].replace("_", " "), f"{sample['source']}:{sample['path']}", sample["reason"], sample["detail"],
            _short(sample.get("text", "")),
        )
        for step in steps
        for sample in step["samples"][:SAMPLES_PER_STEP]
    ]  # fmt: skip
    return Table("Examples of removed documents", columns, tuple(rows), folded=True)


def _row_samples(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = tuple((name, _short(_one_line(row))) for name, some in samples.items() for row in some[:SAMPLES_PER_STEP])
    return Table("Examples of rows", ("file", "row"), rows, folded=True)


def _one_line(row: Mapping[str, Any]) -> str:
    """A row's columns; messages with their roles."""
    shown = []
    for name, value in row.items():
        if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
            value = " / ".join(f"{part['role']}: {part['content']}" for part in value)
        shown.append(str(value) if name == "messages" else f"{name}: {value}")
    return "; ".join(shown)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SAMPLE_CHARS else line[: SAMPLE_CHARS - 1] + "…"


def _given(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in facts.items() if value)
