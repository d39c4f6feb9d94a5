"""Words that tell groups of texts apart: those whose share of a group's texts is most surely above that of the others'.

Log-odds with an informative Dirichlet prior, which is the words of all groups (Monroe, Colaresi and Quinn 2008,
"Fightin' Words", section 3.5.1), of texts that have a word rather than of its occurrences: a word that all have says
nothing, and neither does one that few texts have.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

HALF = 0.5  # of a text, so that a word of all texts has odds
_WORD = re.compile(r"[^\W\d_]{2,}")  # letters


def words_in(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def distinctive(groups: Sequence[Sequence[str]], most: int) -> list[list[str]]:
    """At most `most` words of each group of texts, the surest first; of equally sure ones in the order of letters."""
    counts = [Counter(word for text in texts for word in {*words_in(text)}) for texts in groups]
    total, texts = sum(counts, Counter[str]()), sum(map(len, groups))
    return [_surest(own, len(group), total, texts, most) for own, group in zip(counts, groups, strict=True)]


def _surest(own: Counter[str], size: int, total: Counter[str], texts: int, most: int) -> list[str]:
    """Of a group of `size` texts of all `texts`; `own` and `total`: how many of both have a word."""
    words = sorted(own)
    here, prior = (np.array([of[word] for word in words], float) for of in (own, total))
    sides = ((here, size), (prior - here, texts - size))
    odds = [
        np.log((count + prior + HALF) / (number + texts - count - prior + HALF)) for count, number in sides
    ]  # in the group and elsewhere
    sureness = (odds[0] - odds[1]) / np.sqrt(sum(1 / (count + prior) for count, _ in sides))
    best = np.argsort(-sureness, kind="stable")[:most]
    return [words[at] for at in best if sureness[at] > 0]
