"""Whether drafts pay, and what a server's settings say of them. No device, no clock.

Verifying drafts costs a step more tokens: nothing where a step is bound by reading the weights, much where many rows
decode together. So the engine measures both kinds of dispatches and takes the faster. It may, as tokens are the same.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lifecycle.core.config import Section
from lifecycle.model.config import WeightFormat

MAX_DRAFTS = 8  # of a step: a CPU computes them as it computes one token, bit for bit (`model/cache.py:FEW_ON_CPUS`)
TRY_OTHER = 16  # one in so many dispatches is of the kind that is not the faster one
NEWEST = 0.5  # weight of the newest rate: with 0.2 a slow first dispatch kept drafts out for 700 steps


class SpeculationConfig(Section):
    """How tokens are foreseen."""

    # ngram: what followed the newest tokens where they stood before; eagle: by the head in the bundle; mtp: by the
    # bundle's prediction module; model: by another model
    method: Literal["ngram", "eagle", "mtp", "model"] = "ngram"
    num_tokens: Annotated[int, Field(ge=1, le=MAX_DRAFTS)] = 4  # the most drafts of a step
    bundle: Path | None = None  # of the other model, which has the same tokenizer
    weights: WeightFormat | None = None  # the drafter's matrices rounded to it; None: as the model's are

    @model_validator(mode="after")
    def _check_method(self) -> "SpeculationConfig":
        if self.method == "model" and self.bundle is None:
            raise ValueError("method=model drafts with another model; set bundle=FOLDER")
        if self.method != "model" and self.bundle is not None:
            raise ValueError(f"bundle is for method=model, and method={self.method}; leave out one of them")
        if self.method == "ngram" and self.weights is not None:
            raise ValueError(f"weights={self.weights} is for a drafter's matrices; leave it out with method=ngram")
        return self


class DraftPolicy:
    """Chooses for each dispatch whether to draft: the way that has lately made more tokens a second."""

    def __init__(self) -> None:
        self._rates: dict[tuple[int, bool], float] = {}  # by size of the batch, and whether it drafted
        self._num_asked = 0

    def wants_drafts(self, num_rows: int) -> bool:
        """Whether the next dispatch, of so many rows, should draft."""
        self._num_asked += 1
        size = num_rows.bit_length()
        with_drafts, without = (self._rates.get((size, is_drafted)) for is_drafted in (True, False))
        if with_drafts is None or without is None:
            return with_drafts is None
        is_exploring = self._num_asked % TRY_OTHER == 0
        return (with_drafts >= without) != is_exploring

    def measured(self, num_rows: int, is_drafted: bool, tokens_per_s: float) -> None:
        """Updates the running mean of a dispatch's rate."""
        key = num_rows.bit_length(), is_drafted
        before = self._rates.get(key, tokens_per_s)
        self._rates[key] = before + NEWEST * (tokens_per_s - before)
