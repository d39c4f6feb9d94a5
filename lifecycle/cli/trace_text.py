"""`lifecycle trace --text`: the passages of a text that documents have word for word; whose they are, under which
licence, how they were scored, and what was made with them."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lifecycle.cli.display import in_line, print_json, progress_on
from lifecycle.cli.documents import chosen_corpus, documents_of
from lifecycle.cli.terminal import terminal
from lifecycle.core.artifact import Artifact, open_artifact
from lifecycle.core.config import ConfigError
from lifecycle.data.documents import Split
from lifecycle.data.inspecting.distributions import Score, scores_of
from lifecycle.data.inspecting.selected import columns_of, read_rows
from lifecycle.data.inspecting.text_index import INDEXED, PASSAGE, STAGE, made_index
from lifecycle.data.inspecting.text_lookup import Found, Holder, Passage, TextIndex
from lifecycle.data.measures.filters import document_steps
from lifecycle.ops.lineage import Node
from lifecycle.ops.registry import SHOWN_HASH, Registry
from lifecycle.ops.sightings import made_with
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import DOCUMENTS, of_corpus

MOST_PASSAGES, MOST_DOCUMENTS = 20, 5  # that are shown: of a text, of a passage
STDIN = "-"
_NAMED = ("id", "source", "path", "url", "license", "language", "time", "meta")
_SCORE = "language_score"  # which its step judges by rules of its own

type Rows = Mapping[tuple[Split, int], Mapping[str, Any]]  # documents by their place


def trace_text(config: RunConfig, tree: Node | None, text: str, corpus: str | None, as_json: bool) -> None:
    """Prints what a corpus's documents in a tree of `ops/lineage.py` have of a text; without one, those of the
    config."""
    chosen = chosen_corpus(config, corpus)
    documents = documents_of(config, chosen) if tree is None else _documents_in(tree, of_corpus(DOCUMENTS, chosen))
    with progress_on(terminal(stderr=True)) as progress:
        index = TextIndex(made_index(documents, progress))
    found = index.find(sys.stdin.read() if text == STDIN else text, MOST_PASSAGES, MOST_DOCUMENTS)
    scores = scores_of(document_steps(config.corpora[chosen]))
    answer = _answer(found, _rows(documents.path, found, scores), scores) | _made(config, documents)
    if as_json:
        print_json(answer)
    else:
        print(*_lines(answer), sep="\n")


def _documents_in(tree: Node, stage: str) -> Artifact:
    """The documents of a stage that a version or an artifact was made of."""
    waiting = [tree.get("chain", tree)]
    while waiting:
        node = waiting.pop(0)
        if node["stage"] == stage:
            if node["problem"]:
                raise ConfigError(f"the documents behind it: {node['problem']}")
            return open_artifact(Path(node["path"]))
        waiting += node["inputs"].values()
    raise ConfigError(f"it was made of no {stage}, or its chain is broken; `lifecycle trace` without --text shows it")


def _rows(folder: Path, found: Found, scores: list[Score]) -> Rows:
    """The documents that are shown, without their texts."""
    known = columns_of(folder).names
    columns = [name for name in dict.fromkeys((*_NAMED, _SCORE, *(score.column for score in scores))) if name in known]
    places = {(holder.split, holder.number) for passage in found.passages for holder in passage.holders}
    return {
        (split, number): row
        for split in INDEXED
        if (own := [number for of, number in places if of == split])
        for number, row in read_rows(folder, split, own, columns)
    }


def _answer(found: Found, rows: Rows, scores: list[Score]) -> dict[str, Any]:
    def described(holder: Holder) -> dict[str, Any]:
        row = rows[holder.split, holder.number]
        judged = [_SCORE, *(score.column for score in scores if score.language in (None, row.get("language")))]
        return {
            **{name: row[name] for name in _NAMED if name in row}, "split": holder.split,
            "scores": {name: row[name] for name in dict.fromkeys(judged) if row.get(name) is not None},
            "before": holder.before, "passage": holder.passage, "after": holder.after,
        }  # fmt: skip

    def as_tree(passage: Passage) -> dict[str, Any]:
        return {
            "text": passage.text, "words": passage.num_words, "documents_at_most": passage.num_documents,
            "documents": [described(holder) for holder in passage.holders],
        }  # fmt: skip

    return {
        "words": found.num_words, "words_in_passages": found.num_covered, "num_passages": found.num_passages,
        "too_common": found.num_common, "is_whole": found.is_whole,
        "passages": [as_tree(passage) for passage in found.passages],
    }  # fmt: skip


def _made(config: RunConfig, documents: Artifact) -> dict[str, Any]:
    registry = Registry(config.registry_path) if config.registry_path.is_file() else None
    made, versions = made_with(config.folder, registry, documents)
    return {
        "documents": documents.path.name,
        "stages": [artifact.path.name for artifact in made if artifact.manifest.stage != STAGE],
        "versions": [version.hash for version in versions],
    }


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    if not answer["passages"]:
        yield f"no passage of {PASSAGE} words or more is in {answer['documents']}"
    else:
        share = f"{answer['words_in_passages']:,} of {answer['words']:,} words"
        yield f"{share} are in passages of {PASSAGE} or more that documents in {answer['documents']} have"
    if answer["too_common"]:
        yield f"{answer['too_common']:,} places of the text are in so many documents that they were not looked up"
    if not answer["is_whole"]:
        yield "the text repeats too much to be compared with all documents: passages may be missing, or go on"
    for passage in answer["passages"]:
        yield from _passage_lines(passage)
    if (left := answer["num_passages"] - len(answer["passages"])) > 0:
        yield f"\n{left:,} more passages, which are no longer or say the same"
    yield f"\nmade with these documents: {', '.join(answer['stages']) or 'nothing yet'}"
    yield f"registered versions: {', '.join(version[:SHOWN_HASH] for version in answer['versions']) or 'none'}"


def _passage_lines(passage: Mapping[str, Any]) -> Iterator[str]:
    shown, most = len(passage["documents"]), passage["documents_at_most"]
    number = f"{most:,} document{'s' if most > 1 else ''}" if most == shown else f"{most:,} documents or fewer"
    yield f"\n{passage['words']:,} words, in {number}: {in_line(passage['text'])}"
    for document in passage["documents"]:
        named = (document["license"], document["split"], document.get("url"))
        place = in_line(f"{document['source']}:{document['path']}")
        yield f"  {document['id']}  {place}  {in_line('  '.join(filter(None, named)))}"
        yield f"    …{in_line(document['before'])}[{in_line(document['passage'])}]{in_line(document['after'])}…"
        scores = [f"{name} {value:,.6g}" for name, value in document["scores"].items() if value]
        if zeros := len(document["scores"]) - len(scores):
            scores.append(f"and {zeros} scores of 0")
        yield "    " + "  ".join(scores)
