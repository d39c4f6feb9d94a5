"""Topics of documents, from a file by `lifecycle data topics`, as parts of sources in token shards.

They are joined by the documents' ids when shards are written, so another file selects no document again. In memory are
24 bytes for each document of the file (`measures/scores.py`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lifecycle.core.config import ConfigError
from lifecycle.data.config import DataConfig
from lifecycle.data.documents import Split, read_batches
from lifecycle.data.measures.scores import ScoreTable, read_scores
from lifecycle.data.topic_names import NONE, topic_name

COLUMN = "topic"
SHARDED: tuple[Split, ...] = ("kept", "heldout")


@dataclass(frozen=True)
class Topics:
    """A file of topics, and a hash of what is in it."""

    path: str
    content: str

    def sources(self, documents: pa.RecordBatch) -> pa.StringArray:
        """The names that these documents' sources have with their topics, from `id` and `source`."""
        different, places = np.unique(self._table().of(documents["id"]), return_inverse=True)
        names = pa.array([NONE if np.isnan(topic) else topic_name(int(topic)) for topic in different], pa.string())
        return pc.call_function("binary_join_element_wise", [documents["source"], names.take(pa.array(places)), "/"])

    def count(self, folder: Path) -> dict[str, int]:
        """How many documents of an artifact have a topic, and how many have none. Raises `ConfigError` for a file with
        anything but topics, and for one of none of these documents."""
        table = self._table()
        if wrong := [value for value in table.values.tolist() if value < 0 or value != int(value)]:
            raise ConfigError(f"{self.path}: topic {wrong[0]:g} is no whole number from 0 on")
        counts = np.zeros(2, int)
        for split in SHARDED:
            for batch in read_batches(folder, split, ["id"]):
                counts += np.bincount(np.isnan(table.of(batch["id"])), minlength=2)
        found, missing = counts.tolist()
        if not found:
            raise ConfigError(
                f"data.topics={self.path}: no topic of a document in {folder}; make it with: lifecycle data topics"
            )
        return {"with_topic": found, "without": missing}

    def _table(self) -> ScoreTable:
        return read_scores(Path(self.path), COLUMN)


def topics_of(config: DataConfig) -> Topics | None:
    """The topics of a corpus's documents, if the settings name some."""
    content = config.sharding()["topics"]
    return None if config.topics is None else Topics(config.topics, content)
