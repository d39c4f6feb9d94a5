"""A process that trains a tiny run with its checkpoints mirrored to a store; it may kill itself once a copy is there.

python -m tests.training.mirrored_job OUT STORE [KILL_AT AFTER]
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from lifecycle.core.progress import Silent
from lifecycle.core.store import Store
from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.testing.waiting import wait_until
from lifecycle.training.checkpoints.mirror import Mirror
from lifecycle.training.job import CHECKPOINTS
from lifecycle.training.loop import run_job

RUN = TinyRun(steps=10, checkpoint_every=3)


class KillOnceCopied(Silent):
    """SIGKILL after a step, once the checkpoint of an earlier one is whole in the store."""

    def __init__(self, step: int, after: int, store: Store) -> None:
        self._step, self._after, self._store = step, after, store

    def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
        if done == self._step:
            wait_until(lambda: self._store.head(f"{CHECKPOINTS}/{self._after}/files.json") is not None)
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, text: str) -> None:
        print(text)


def main(out: Path, store: Store, kill: list[int]) -> None:
    step, after = kill or (-1, -1)
    progress = KillOnceCopied(step, after, store)
    mirror = Mirror(store, out, CHECKPOINTS, progress)
    mirror.restore()
    with mirror.running():
        stats = run_job(tiny_job(out, RUN), progress)
    print(stats["params_hash"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Store(sys.argv[2]), [int(word) for word in sys.argv[3:]])
