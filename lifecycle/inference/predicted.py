"""How much of a predicted output an output has: what OpenAI's API calls accepted and rejected prediction tokens.

By the texts alone: whether a token was drafted depends on a clock (`inference/speculation.py`), and usage must not.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise


class PredictedTokens:
    """Counts the tokens of a prediction that an output has in the same order. `push` each token of the output.

    A token is the prediction's next one, or together with the token before it a pair that stands further on: what is
    between is passed over for good. So the count is of a common subsequence, the longest where texts differ in places.
    """

    def __init__(self, prediction: Sequence[int]) -> None:
        self.num_accepted = 0
        self._prediction = prediction
        self._next = 0  # of the prediction, those before it are accepted or passed over
        self._before, self._is_counted = -1, True  # the newest token, and whether it is one of those accepted
        self._pairs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # where each begins, in order
        for place, pair in enumerate(pairwise(prediction)):
            self._pairs[pair].append(place)

    def push(self, token: int) -> None:
        """Adds the output's next token."""
        num = 0
        if self._next < len(self._prediction) and self._prediction[self._next] == token:
            num, self._next = 1, self._next + 1
        elif (place := self._further(token)) is not None:
            num, self._next = 1 if self._is_counted else 2, place + 2
        self.num_accepted += num
        self._before, self._is_counted = token, num > 0

    def _further(self, token: int) -> int | None:
        """Where the newest two tokens stand in what is left of the prediction."""
        places = self._pairs.get((self._before, token), [])
        number = bisect_left(places, self._next)
        return places[number] if number < len(places) else None
