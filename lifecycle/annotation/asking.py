"""Asks what a journal does not have yet, and keeps what is answered.

What must hold: every question is answered once, over as many runs as it takes. A question that the server refuses has
its answer, which is a fault; one that the server could not answer now is left for the next run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lifecycle.annotation.journal import Journal, Row
from lifecycle.annotation.respondents import Question, Respondent, answers
from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.evals.chat_client import Answer, AskError

MOST_UNANSWERED = 50  # then the server is gone, and no other question need be tried
REFUSED = "refused by the server"

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
    before = answered = failed = refused = 0

    def missing() -> Iterator[Question]:
        nonlocal before
        for question in questions:
            keys.append(question.key)
            if question.key in journal:
                before += 1
            else:
                yield question

    for question, answer in answers(respondent, missing()):
        if isinstance(answer, AskError) and answer.may_pass:
            unanswered.append(str(answer))
            if len(unanswered) == MOST_UNANSWERED:
                break
            continue
        found = REFUSED if isinstance(answer, AskError) else rows_of(question, answer)
        if isinstance(answer, AskError) and not refused:
            progress.note(f"a question is refused: {answer}")
        refused += isinstance(answer, AskError)
        is_fault = isinstance(found, str)
        journal.add(question.key, () if is_fault else found, found if is_fault else "")
        answered, failed = answered + 1, failed + is_fault
        progress.update(before + answered, failed=failed)
    if unanswered:
        raise ConfigError(
            f"{len(unanswered)} questions have no answer, the first: {unanswered[0]}; {before + answered} have theirs: "
            "the same command goes on with the others"
        )
    return Asked(keys, before)
