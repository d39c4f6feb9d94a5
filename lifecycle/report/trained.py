"""What a report is told of the training stages of a run, in the order of its graph.

A run has any number of them, under the user's names. Which of them lead to the exported model, and which evaluation
comes before which: `start`.
"""

from dataclasses import dataclass

from lifecycle.core.artifact import Artifact


@dataclass(frozen=True)
class TrainedStage:
    """A training stage, its artifact, and the evaluation of its weights (None: they were not evaluated).

    `start` is the training stage that it goes on from, None for fresh weights or a bundle's. `is_exported`: the run's
    bundle has its weights.
    """

    name: str
    objective: str
    artifact: Artifact
    evaluation: Artifact | None = None
    start: str | None = None
    is_exported: bool = False
