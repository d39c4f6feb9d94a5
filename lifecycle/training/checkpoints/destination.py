"""Where the checkpoints of a job go whose hosts share no folder (`stored.py`)."""

from collections.abc import Callable
from dataclasses import dataclass

from lifecycle.core.store import Store


@dataclass(frozen=True)
class Destination:
    """The store of a stage's artifact. `require` is called before process 0 writes: it raises if the run is not
    ours."""

    store: Store
    require: Callable[[], None]
