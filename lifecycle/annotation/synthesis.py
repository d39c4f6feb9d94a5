"""Texts that a model makes of kept documents: written again, or as questions and answers; an artifact of rows.

Rephrasing: Maini et al. 2024, WRAP (arXiv:2401.16380); questions and rephrasing of a web corpus: Su et al. 2024,
Nemotron-CC (arXiv:2412.02595). A row has the licence and the address of its document and says which document, prompt
and model made it. Rows are nothing but a source for another run: only its deduplication and decontamination make them
fit for training, since a model copies, and knows tests by heart.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from lifecycle.annotation.asking import ask_missing
from lifecycle.annotation.journal import Journal, Row
from lifecycle.annotation.passages import passages
from lifecycle.annotation.prompts import Prompt, columns_of
from lifecycle.annotation.respondents import Question, Respondent
from lifecycle.annotation.sample import drawn_documents, drawn_numbers
from lifecycle.core.artifact import Artifact, ArtifactError, Draft, open_artifact
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.evals.chat_client import Answer

type Kind = Literal["rephrase", "questions"]

STAGE = "synthetic"
ROWS = "rows.jsonl"
JOURNAL = "journal.jsonl"  # while the artifact is made

_REFUSES = re.compile(
    r"\W*(?:(?:i am|i['\u2019]m) (?:sorry|unable|not able)|sorry, |as an ai\b|i (?:cannot|can['\u2019]t|won['\u2019]t) "
    r"(?:help|assist|comply|fulfil|provide|rewrite|write|do|create)\b)",
    re.IGNORECASE,
)
_MARK = re.compile(r"[\s*#>\d.)-]*(question|answer|q|a)\b[\s\d*]*:[\s*]*(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Synthesis:
    """What is made: of at most `most` documents, in passages of at most `chars` characters."""

    kind: Kind
    prompt: Prompt
    most: int = 1000
    seed: int = 0
    chars: int = 4000

    def questions(self, row: Mapping[str, Any]) -> Iterator[Question]:
        """The questions about a document, one for each passage."""
        about = {"license": row["license"], **({"url": row["url"]} if row["url"] else {})}
        about |= {"from_id": row["id"], "from_source": row["source"], "from_path": row["path"]}
        for number, passage in enumerate(passages(row["text"], self.chars)):
            asked = self.prompt.filled(columns_of(row) | {"text": passage})
            yield Question(f"{row['id']}:{number}", asked, about | {"passage": number})


def synthesise(
    documents: Path, root: Path, respondent: Respondent, synthesis: Synthesis, progress: Progress,
    sampling: Mapping[str, Any], how: Mapping[str, Any],
) -> Artifact:  # fmt: skip
    """The artifact below `root` with a row for each passage of which the model has made something, `rows.jsonl`; a
    finished one with the same key, or a new one, which goes on where a killed run has stopped.

    `documents` is an artifact of stage `documents`; `sampling` decides answers, `how` does not and is recorded. Raises
    `ConfigError` if nothing came of it, and what `ask_missing` raises.
    """
    made = {"kind": synthesis.kind, "prompt": synthesis.prompt.version, "model": respondent.name}
    settings = {**made, "most": synthesis.most, "chars": synthesis.chars, **sampling}
    draft = Draft(root, STAGE, settings, {}, {"documents": documents})
    try:
        return open_artifact(draft.final_path)
    except ArtifactError:  # not made yet, or damaged
        pass
    out = draft.open()
    with draft.keeping_costs():
        stats = _write(documents, out, respondent, synthesis, made, settings, progress)
    (out / JOURNAL).unlink()
    return draft.commit(stats, how=[how])


def _write(
    documents: Path, out: Path, respondent: Respondent, synthesis: Synthesis, made: Row, settings: Row,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    numbers = drawn_numbers(documents, synthesis.most, synthesis.seed)

    def rows_of(question: Question, answer: Answer) -> list[Row] | str:
        text, fault = text_of(answer, synthesis.kind)
        return fault or [{"text": text, **question.about, **made}]

    with Journal(out / JOURNAL, settings) as journal:
        progress.start(f"synthesis: {synthesis.kind}")
        questions = (asked for row in drawn_documents(documents, numbers) for asked in synthesis.questions(row))
        asked = ask_missing(journal, respondent, questions, rows_of, progress)
        num_rows, faults = journal.write(out / ROWS, asked.keys), journal.faults(asked.keys)
    if not num_rows:
        raise ConfigError(f"none of {len(asked.keys)} answers can be used: {faults}; ask another model or prompt")
    assert num_rows + sum(faults.values()) == len(asked.keys)
    return {"documents": len(numbers), "passages": len(asked.keys), "rows": num_rows, "faults": faults}


def text_of(answer: Answer, kind: Kind) -> tuple[str, str]:
    """The text of an answer, and why it cannot be used, if it cannot."""
    text = answer.text.encode("utf-8", "replace").decode().strip()  # JSON has halves of characters, files have not
    if answer.finish_reason == "length":
        return "", "cut off"
    if answer.finish_reason in ("refusal", "content_filter") or _REFUSES.match(text):
        return "", "refused by the model"
    if not text:
        return "", "empty"
    if kind == "questions":
        text = "\n\n".join(f"Question: {question}\nAnswer: {reply}" for question, reply in pairs_in(text))
        return text, "" if text else "no question with an answer"
    return text, ""


def pairs_in(text: str) -> Sequence[tuple[str, str]]:
    """The questions in a text, each with the answer that follows it; each begins on a line of its own."""
    parts: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if mark := _MARK.match(line):
            parts.append((mark[1][0].lower(), [mark[2]]))
        elif parts:
            parts[-1][1].append(line)
    said = [(kind, "\n".join(lines).strip(" \n*")) for kind, lines in parts]
    both = pairwise(said)
    return [(own, other) for (one, own), (two, other) in both if (one, two) == ("q", "a") and own and other]
