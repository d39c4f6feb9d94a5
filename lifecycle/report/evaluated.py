"""Evaluations of a run's training stages: by task, before and after each stage, and against the baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lifecycle.core.artifact import Artifact
from lifecycle.evals.comparison import compare
from lifecycle.evals.results import LEVEL, EvalResult, read_results
from lifecycle.evals.statistics import Comparison, compare_paired
from lifecycle.report.trained import TrainedStage

BASELINES = {"trigram-seen": "trigram of as many tokens as seen", "trigram-whole": "trigram of the whole split"}


@dataclass(frozen=True)
class Task:
    """An evaluation task after each evaluated stage.

    `changes`: by (earlier stage, later stage), the earlier one being the nearest evaluated stage in the later one's
    lineage. `last`: the exported stage, or the last evaluated one if that has no result. `first`: the earliest
    evaluated stage in `last`'s lineage.
    """

    name: str
    results: Mapping[str, EvalResult]
    changes: Mapping[tuple[str, str], Comparison]
    first: str
    last: str

    @property
    def final(self) -> EvalResult:
        """The result of `last`."""
        return self.results[self.last]

    @property
    def chance(self) -> float | None:
        """The score of random guessing, if the task has one."""
        return self.final.other.get("chance")


@dataclass(frozen=True)
class Baseline:
    """A model for comparison; `against`: by stage, the trained model minus this one, on the same documents."""

    name: str
    tokens: int
    result: EvalResult
    against: Mapping[str, Comparison]


def read_tasks(trained: Sequence[TrainedStage]) -> tuple[Task, ...]:
    """The tasks of a run, in the order of its file."""
    evaluations = {stage.name: read_results(stage.evaluation.path) for stage in trained if stage.evaluation is not None}
    by_name: dict[str, dict[str, EvalResult]] = {}
    for stage, results in evaluations.items():
        for result in results:
            by_name.setdefault(result.task, {})[stage] = result
    exported = [stage.name for stage in trained if stage.is_exported]
    starts = {stage.name: stage.start for stage in trained}
    tasks = []
    for name, results in by_name.items():
        before = {stage: _evaluated_before(stage, starts, results) for stage in results}
        changes = {
            (then, now): compare(results[then], results[now], LEVEL) for now, then in before.items() if then is not None
        }
        last = first = next((stage for stage in exported if stage in results), list(results)[-1])
        while (earlier := before[first]) is not None:
            first = earlier
        tasks.append(Task(name, results, changes, first, last))
    return tuple(tasks)


def read_baselines(artifact: Artifact, tasks: Sequence[Task]) -> tuple[Task | None, tuple[Baseline, ...]]:
    """The task that measures the baselines' text, and the baselines compared with it.

    If training has read all tokens of the split, the two baselines are the same model, and only one is returned.
    """
    results = read_results(artifact.path)
    text = next((task for task in tasks if _is_same_text(task.final, results[0])), None)
    by_tokens = {baseline.tokens: baseline for baseline in (_baseline(r, artifact, text) for r in results)}
    return text, tuple(by_tokens.values())


def _baseline(result: EvalResult, artifact: Artifact, text: Task | None) -> Baseline:
    against = {
        stage: compare_paired(result.scores, trained.scores, result.weights, result.higher_is_better, LEVEL)
        for stage, trained in (text.results if text is not None else {}).items()
    }
    tokens = artifact.stats[result.task.removeprefix("trigram-")]["tokens"]
    return Baseline(BASELINES[result.task], tokens, result, against)


def _evaluated_before(stage: str, starts: Mapping[str, str | None], results: Mapping[str, EvalResult]) -> str | None:
    """The nearest earlier stage in its lineage that has a result."""
    before = starts[stage]
    while before is not None and before not in results:
        before = starts[before]
    return before


def _is_same_text(result: EvalResult, baseline: EvalResult) -> bool:
    """Whether both were measured on the same documents, in the same order: an example's weight is its bytes."""
    return result.metric == baseline.metric and result.weights == baseline.weights
