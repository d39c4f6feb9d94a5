"""Requests that drafts must not change, and an engine that always drafts."""

from lifecycle.inference.drafting import Drafter
from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Completion
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.speculation import DraftPolicy
from lifecycle.inference.stats import EngineStats
from tests.engine_turns import held

SLOTS, DRAFTS = 2, 3
LOOP = [7, 8, 9, 10] * 30  # 120 tokens, and as many make it cross a page
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, stop_ids=())
SAMPLED = GREEDY.model_copy(update={"temperature": 0.7, "top_k": 3, "seed": 11, "top_logprobs": 2})
PENALISED = SAMPLED.model_copy(
    update={
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "logit_bias": ((9, 2.0),),
        "bad_words_ids": ((9, 9), (8, 9), (10, 7, 8)),
    }
)
TO_THE_END = [  # of which every draft that is right is accepted
    (LOOP, GREEDY),
    ([66] * 120, SAMPLED),
    (list(range(40, 57)) * 2, GREEDY.model_copy(update={"max_tokens": 7})),
    (LOOP, PENALISED),
]
REQUESTS = [*TO_THE_END, ([5, 6] * 90, GREEDY.model_copy(update={"stop_ids": (1, 2, 3, 4, 5), "min_tokens": 9}))]

type Request = tuple[list[int], SamplingParams]


class Always(DraftPolicy):
    """The policy may find that a tiny model does without."""

    def wants_drafts(self, num_rows: int) -> bool:
        return True


def drafting_engine(
    model: Model, drafter: Drafter | None, cache_tokens: int | None = None, warm_up: bool = False
) -> Engine:
    engine = Engine(model, SLOTS, drafter=drafter, cache_tokens=cache_tokens, warm_up=warm_up)
    if drafter is not None:
        engine._runner._drafts = Always()
    return engine


def answers(engine: Engine, requests: list[Request]) -> list[Completion]:
    with held(engine):
        asked = [engine.submit(*request) for request in requests]
    return [generation.wait() for generation in asked]


def run(model: Model, drafter: Drafter | None, cache_tokens: int | None = None) -> tuple[list[Completion], EngineStats]:
    with drafting_engine(model, drafter, cache_tokens) as engine:
        return answers(engine, REQUESTS), engine.stats
