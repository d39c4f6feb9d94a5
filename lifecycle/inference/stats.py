"""What an engine counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lifecycle.inference.decoding import Decoded


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start, and the state now."""

    decode_steps: int = 0
    decode_tokens: int = 0  # divided by decode_steps: the mean number of tokens that a step makes
    draft_tokens: int = 0  # that were verified
    accepted_tokens: int = 0  # of these
    prefill_tokens: int = 0
    cached_tokens: int = 0  # of prompts, that were found in the cache
    not_finite: int = 0  # requests that failed by numbers that are not finite
    given_up: int = 0  # times that a request gave up its slot for want of pages
    largest_batch: int = 0
    active: int = 0
    waiting: int = 0
    pages: Mapping[str, int] = field(default_factory=dict[str, int])  # of the cache, by state
    cache_bytes: int = 0  # of all pages, on all devices

    def with_dispatch(self, decoded: Decoded) -> "EngineStats":
        """The counters after a decode dispatch, whose arrays are in host memory."""
        made, num_steps = np.asarray(decoded.num_tokens), np.asarray(decoded.num_steps)
        return replace(
            self,
            decode_steps=self.decode_steps + int(num_steps.max()),
            decode_tokens=self.decode_tokens + int(made.sum()),
            draft_tokens=self.draft_tokens + int(decoded.num_drafts.sum()),
            accepted_tokens=self.accepted_tokens + int((made - num_steps).sum()),
            largest_batch=max(self.largest_batch, int((made > 0).sum())),
        )
