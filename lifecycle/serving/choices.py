"""The choices of one HTTP request: generations that are submitted together and read as one stream."""

import asyncio
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lifecycle.inference.adapters import HeldAdapter
from lifecycle.inference.engine import Engine
from lifecycle.inference.forbidden import ForbiddenError
from lifecycle.inference.generation import Completion, EngineError, Event, Generation, NotFiniteError, collect
from lifecycle.inference.grammar import GrammarError
from lifecycle.inference.intake import ContextLengthError
from lifecycle.inference.requests import ClosedError, QueueFullError
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.errors import RequestError
from lifecycle.weights.adapters import AdapterError

RETRY_AFTER_S = 1  # a slot becomes free about this often under load


@dataclass(frozen=True)
class Served:
    """A model behind a name, or an adapter of one. `created` is the version's time, seconds since the epoch."""

    engine: Engine
    created: int = 0
    adapter: HeldAdapter | None = None

    @property
    def version(self) -> str:
        """The content hash of the bundle, or of the adapter."""
        return self.engine.model.version if self.adapter is None else self.adapter.version


class Choices:
    """The choices of one request, numbered from 0: for each prompt, as many as the request asks for."""

    def __init__(self, generations: Sequence[Generation]) -> None:
        self.generations = generations

    def cancel(self) -> None:
        """Ends all of them at the engine's next turn."""
        for generation in self.generations:
            generation.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(choice, event) as they come; raises `RequestError` if the engine breaks."""
        streams = [aiter(generation) for generation in self.generations]
        waiting = {asyncio.ensure_future(anext(stream)): i for i, stream in enumerate(streams)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index, event = waiting.pop(task), task.result()
                    if event.finish_reason is None:
                        waiting[asyncio.ensure_future(anext(streams[index]))] = index
                    yield index, event
        except EngineError as error:
            if isinstance(error.__cause__, GrammarError | ForbiddenError):  # more than is possible, or the limits allow
                raise RequestError(400, str(error.__cause__), code="invalid_value") from error
            raise failed(error) from error
        finally:
            for task in waiting:
                task.cancel()
            self.cancel()


def failed(error: EngineError) -> RequestError:
    """The error for a request that the engine has taken and could not answer."""
    if isinstance(error.__cause__, NotFiniteError):
        return RequestError(500, str(error.__cause__), code="not_finite")
    return RequestError(500, str(error), code="engine_error")


def require_capacity(engine: Engine, number: int) -> None:
    """Raises `RequestError` for more choices than the engine can ever hold, and if it has no room for any now: before
    their texts are tokenized."""
    if number > engine.max_requests:
        message = (
            f"prompts times n (or best_of) is {number}, but this server holds at most {engine.max_requests} at once"
        )
        raise RequestError(400, message, "n", "invalid_value")
    if (held := engine.stats.active + engine.stats.waiting) >= engine.max_requests:
        raise busy(f"it holds {held} requests, which is the limit; retry later")


def busy(reason: str) -> RequestError:
    """The error for a request that finds no room."""
    retry = {"Retry-After": str(RETRY_AFTER_S)}
    return RequestError(429, f"the server is busy: {reason}", code="queue_full", headers=retry)


def submit(
    served: Served, work: Sequence[tuple[Sequence[int], SamplingParams]], prediction: Sequence[int] = ()
) -> Choices:
    """Submits all of a request or nothing; raises `RequestError` if the engine rejects it."""
    generations: list[Generation] = []
    try:
        with rejections():
            for prompt, params in work:
                generations.append(served.engine.submit(prompt, params, served.adapter, prediction))
    except RequestError:
        Choices(generations).cancel()
        raise
    return Choices(generations)


@contextmanager
def rejections() -> Generator[None]:
    """Raises what an engine says of a request that it does not take as `RequestError`."""
    try:
        yield
    except ContextLengthError as error:
        raise RequestError(400, str(error), code="context_length_exceeded") from None
    except ForbiddenError as error:
        raise RequestError(400, str(error), error.setting, "invalid_value") from None
    except QueueFullError as error:
        raise busy(str(error)) from None
    except AdapterError as error:
        raise RequestError(404, str(error), "model", "model_not_found") from None
    except (ClosedError, EngineError) as error:
        raise RequestError(503, str(error), code="unavailable") from None


def completions(events: Sequence[tuple[int, Event]], count: int) -> list[Completion]:
    """Joins the events of each of `count` choices."""
    return [collect([event for index, event in events if index == i]) for i in range(count)]


def best(every: Sequence[Completion], made: int, wanted: int) -> list[int]:
    """The numbers of the `wanted` best of each `made` completions in turn, the best first: those with the highest
    log-probability per token, as in OpenAI's API. Of equal ones the first counts; all stay in their order."""
    if made == wanted:
        return [*range(len(every))]
    scores = [sum(token.logprob for token in one.tokens) / len(one.tokens) for one in every]
    starts = range(0, len(every), made)
    return [i for start in starts for i in sorted(range(start, start + made), key=lambda i: -scores[i])[:wanted]]
