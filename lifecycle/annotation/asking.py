"""Asks what a journal does not have yet, and keeps what is answered.

What must hold: every question is answered once, over as many runs as it takes. A question that the server refuses has
its answer, which is a fault; one that the server could not answer now is left for the next run.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from lifecycle.annotation.journal import ROWS, Journal, Row
from lifecycle.annotation.respondents import Question, Respondent, answers
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.evals.chat_client import Answer, AskError

MOST_UNANSWERED = 50  # then the server is gone, and no other question need be tried
REFUSED, BEFORE = "refused by the server", "before"

type RowsOf = Callable[[Question, Answer], Sequence[Row] | str]  # the rows of an answer, or why there are none


@dataclass(frozen=True)
class Asked:
    """The keys of all questions, in order, and how many had their answers before."""

    keys: list[str]
    before: int


def ask_missing(
    journal: Journal, respondent: Respondent, questions: Iterable[Question], rows_of: RowsOf, progress: Progress
) -> Asked:
    """Asks the questions that the journal does not have; the caller starts the progress.

    Raises `ConfigError` if some have no answer yet, and `AskError` if the server refuses all.
    """
    keys: list[str] = []
    unanswered: list[str] = []
    counts = Counter[str]()
    with closing(answers(respondent, _missing(journal, questions, keys, counts))) as found:
        for question, answer in found:
            if isinstance(answer, AskError) and answer.may_pass:
                unanswered.append(str(answer))
                if len(unanswered) == MOST_UNANSWERED:
                    break
                continue
            if isinstance(answer, AskError) and not counts[REFUSED]:
                progress.note(f"a question is refused: {answer}")
            counts[_keep(journal, question, answer, rows_of)] += 1
            answered = counts.total() - counts[BEFORE]
            progress.update(counts.total(), failed=answered - counts[ROWS])
    if unanswered:
        raise ConfigError(
            f"{len(unanswered)} questions have no answer, the first: {unanswered[0]}; {counts.total()} have theirs: "
            "the same command goes on with the others"
        )
    return Asked(keys, counts[BEFORE])


def _missing(
    journal: Journal, questions: Iterable[Question], keys: list[str], counts: Counter[str]
) -> Iterator[Question]:
    """The questions that the journal does not have; notes the keys of all, and counts the others."""
    for question in questions:
        keys.append(question.key)
        if question.key in journal:
            counts[BEFORE] += 1
        else:
            yield question


def _keep(journal: Journal, question: Question, answer: Answer | AskError, rows_of: RowsOf) -> str:
    """Adds what came of a question to the journal; returns why there are no rows, if there are none."""
    found = REFUSED if isinstance(answer, AskError) else rows_of(question, answer)
    rows, fault = ((), found) if isinstance(found, str) else (found, ROWS)
    journal.add(question.key, rows, fault)
    return fault
