"""Compares two results of one task, example by example if both have the same examples."""

from lifecycle.evals.results import EvalResult
from lifecycle.evals.statistics import Comparison, compare_paired, compare_unpaired


def compare(before: EvalResult, after: EvalResult, level: float) -> Comparison:
    """After minus before: paired if both were scored on the same examples, otherwise Welch's t."""
    old = {example.id: example for example in before.examples}
    new = {example.id: example for example in after.examples}
    if old.keys() == new.keys():
        order = sorted(old)
        scores = ([old[i].score for i in order], [new[i].score for i in order])
        return compare_paired(*scores, [new[i].weight for i in order], after.higher_is_better, level)
    return compare_unpaired(
        (before.scores, before.weights), (after.scores, after.weights), after.higher_is_better, level
    )
