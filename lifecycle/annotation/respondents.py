"""Who answers questions about documents: a server of OpenAI's API, or a model in this process. Both look the same.

Questions are taken as they are needed, a few for each that is answered at a time, so neither many documents nor a slow
answer fill the memory. Answers come as they are had, in no order.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from zlib import crc32

from lifecycle.evals.chat_client import Answer, AskError, ChatClient
from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import EngineError
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.texts import prompt_ids
from lifecycle.text.thoughts import MARKS, ThoughtSplitter

AHEAD = 4  # questions that wait for each that is answered, so that a long answer does not idle the others


class Question(NamedTuple):
    """A question; `key` names it among the others and decides its seed, `about` is what its rows will say of it."""

    key: str
    text: str
    about: Mapping[str, Any]


class Respondent(Protocol):
    """Answers questions from several threads."""

    @property
    def name(self) -> str:
        """The model, as rows and keys have it: its name at the server, or the version of its weights."""
        ...

    @property
    def concurrency(self) -> int:
        """How many questions it answers at a time."""
        ...

    def ask(self, question: Question) -> Answer | AskError:
        """The answer, or why there is none; raises `AskError` if no question could be answered."""
        ...


@dataclass(frozen=True)
class Sampled:
    """How answers are sampled. A question's seed follows from this one and its key."""

    temperature: float
    max_tokens: int
    seed: int = 0

    def seed_of(self, question: Question) -> int:
        """The seed of a question, 31 bits: what every server takes."""
        return crc32(question.key.encode(), self.seed & 0xFFFFFFFF) >> 1


@dataclass(frozen=True)
class ServerRespondent:
    """A model behind OpenAI's API."""

    client: ChatClient
    sampled: Sampled

    @property
    def name(self) -> str:
        """The model's name at the server."""
        return self.client.model

    @property
    def concurrency(self) -> int:
        """As the client."""
        return self.client.concurrency

    def ask(self, question: Question) -> Answer | AskError:
        """One chat of one message."""
        return self.client.ask({
            "messages": [{"role": "user", "content": question.text}], "temperature": self.sampled.temperature,
            "max_tokens": self.sampled.max_tokens, "seed": self.sampled.seed_of(question),
        })  # fmt: skip


@dataclass(frozen=True)
class EngineRespondent:
    """A model in this process; its engine's queue holds `AHEAD` questions for each slot."""

    engine: Engine
    sampled: Sampled

    @property
    def name(self) -> str:
        """The version of the weights."""
        return self.engine.model.version

    @property
    def concurrency(self) -> int:
        """As many as fill the slots while others wait."""
        return AHEAD * self.engine.num_slots

    def ask(self, question: Question) -> Answer | AskError:
        """One chat of one message; raises `EngineError` if the engine itself fails."""
        own = {"temperature": self.sampled.temperature, "max_tokens": self.sampled.max_tokens}
        params = self.engine.model.defaults.model_copy(update=own | {"seed": self.sampled.seed_of(question)})
        try:
            completion = self._completed(question.text, params)
        except ValueError as error:  # of the question: too long for the context, or refused by the template
            return AskError(str(error))
        except EngineError as error:
            if not self.engine.is_alive:
                raise
            return AskError(str(error))
        return Answer(*completion)

    def _completed(self, text: str, params: SamplingParams) -> tuple[str, str]:
        ids = prompt_ids(self.engine.model, [{"role": "user", "content": text}])
        found = self.engine.submit(ids, params).wait()
        return found.text, found.finish_reason


def answers(
    respondent: Respondent, questions: Iterable[Question]
) -> Generator[tuple[Question, Answer | AskError], None, None]:
    """Each question with its answer, without thoughts, as they are had."""
    threads = ThreadPoolExecutor(respondent.concurrency)
    waiting: dict[Future[Answer | AskError], Question] = {}
    try:
        for question in questions:
            waiting[threads.submit(respondent.ask, question)] = question
            if len(waiting) >= AHEAD * respondent.concurrency:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _finished(
    waiting: dict[Future[Answer | AskError], Question],
) -> Iterator[tuple[Question, Answer | AskError]]:
    """Waits for at least one answer; takes those that are there out of `waiting`."""
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        question, answer = waiting.pop(future), future.result()
        yield question, answer if isinstance(answer, AskError) else answer._replace(text=without_thoughts(answer.text))


def without_thoughts(text: str) -> str:
    """An answer without the thoughts that it begins with, where a server leaves them in: between two marks, or before
    the second one, if the first is the prompt's."""
    for marks in MARKS:
        is_open = marks[1] in text and marks[0] not in text
        if is_open or text.lstrip().startswith(marks[0]):
            splitter = ThoughtSplitter(marks, is_open)
            parts = (*splitter.feed(text), *splitter.flush())
            return "".join(part.text for part in parts if part.kind == "text")
    return text
