"""Which files of its inputs a stage opens: of a run in a store, the others are not fetched.

What must hold: a stage opens no other file. One that is missing here fails where the run goes on on an empty machine,
so `tests/stages/test_stages_opened.py` has each stage of the debug run do that.
"""

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase

from lifecycle.core.artifact import Artifact
from lifecycle.core.files import FILES
from lifecycle.core.runlog import METRICS, ROLLOUTS
from lifecycle.core.timesheet import TIMES
from lifecycle.evals.tasks import TaskConfig
from lifecycle.stages.checks import rows_stage
from lifecycle.stages.names import DOCUMENTS

type Opened = Callable[[Artifact], Collection[str]]  # from an input to the names of its files


def everything(artifact: Artifact) -> Collection[str]:
    """All files."""
    return artifact.manifest.files.keys()


def nothing(artifact: Artifact) -> Collection[str]:
    """No file: the manifest is enough."""
    return ()


def matching(*patterns: str) -> Opened:
    """The files that match a pattern, in which `*` stands for anything, slashes too."""
    return lambda artifact: [
        name for name in artifact.manifest.files if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def final_weights(artifact: Artifact) -> Collection[str]:
    """The weights in the last checkpoint of a training stage, without the optimizer's state."""
    from lifecycle.training.checkpoints.items import weights_item  # imports JAX

    whole, last = checkpoint(artifact, artifact.stats["steps"]), f"{_folder()}/{artifact.stats['steps']}/"
    item = weights_item(name.removeprefix(last) for name in whole if name.startswith(last))
    read = (f"{last}{item}/", f"{last}{FILES}")
    return [name for name in whole if name.startswith(read) or not name.startswith(last)]


def checkpoint(artifact: Artifact, step: int) -> Collection[str]:
    """One checkpoint of a training stage, with the frozen parameters; of the others the lists of files, by which they
    are found."""
    from lifecycle.training.checkpoints.weights import FROZEN  # imports JAX

    return matching(*(f"{_folder()}/{part}" for part in (f"{step}/*", f"{FROZEN}/*", f"*/{FILES}")))(artifact)


def _folder() -> str:
    from lifecycle.training.job import CHECKPOINTS  # imports JAX

    return CHECKPOINTS


def figures(artifact: Artifact) -> Collection[str]:
    """What a report reads of a stage beside its manifest: the logs of training, samples of rollouts, what the filters
    did, and where they found what the model is tested on."""
    from lifecycle.data.selecting.contamination import FILE as CONTAMINATION  # imports Numba
    from lifecycle.report.numbers import FUNNEL

    return matching(METRICS, ROLLOUTS, TIMES, FUNNEL, CONTAMINATION)(artifact)


def rows_of(tasks: Iterable[TaskConfig], documents: Iterable[str]) -> dict[str, Opened]:
    """The documents that tasks have as rows, by stage. Files of rows are small: all are fetched."""
    read = [(rows_stage(task), task.rows.partition("/")[2]) for task in tasks]
    return {name: matching(*(pattern for stage, pattern in read if stage in (DOCUMENTS, name))) for name in documents}
