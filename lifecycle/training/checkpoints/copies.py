"""Local copies of checkpoints in a store: of each, what this host reads.

A checkpoint may be larger than a host's disk, and a host holds a small part of the state. So a file of values comes to
the hosts whose shards need it, all other files, which are small, to all. What must hold: each file here has the SHA-256
of the checkpoint's list of files. One that did not come cannot be read as something else: OCDBT fails.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from lifecycle.core.artifact import ArtifactError
from lifecycle.core.files import FILES, alone
from lifecycle.core.published import fetch
from lifecycle.core.store import Store
from lifecycle.training.checkpoints.arrays import Shapes
from lifecycle.training.checkpoints.mirror import files_listed
from lifecycle.training.checkpoints.needed import value_files
from lifecycle.training.checkpoints.parts import is_value


class Copies:
    """The copies in a folder, which the processes of this host share, of the checkpoints in a store."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder

    def path(self, name: str) -> Path:
        """Where the copy of a checkpoint is."""
        return self._folder / name

    def bring(self, name: str, wanted: Mapping[str, Shapes]) -> None:
        """Makes a copy have all that this process reads of the arrays `wanted`, by item (`value_files`).

        Raises `ArtifactError` for a file that is damaged in the store, `Missing` if there is no such checkpoint.
        """
        here, below = self.path(name), self._store.below(name)
        with alone(self._folder / ".lock"):
            listing = below.read(FILES)
            facts = files_listed(listing, below)
            if (here / FILES).is_file() and (here / FILES).read_bytes() != listing:  # saved again meanwhile
                shutil.rmtree(here)
            fetch(below, here, {file: known for file, known in facts.items() if not is_value(file)})
            (here / FILES).write_bytes(listing)
            needed = value_files(here, wanted)
            if unlisted := needed - facts.keys():
                raise ArtifactError(f"{below.url}/{FILES}: {min(unlisted)} is not in it")
            fetch(below, here, {file: facts[file] for file in needed})

    def clear(self) -> None:
        """Deletes the copies; other processes of this host may be doing it too."""
        shutil.rmtree(self._folder, ignore_errors=True)
