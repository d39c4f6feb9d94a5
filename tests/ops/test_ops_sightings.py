"""Sightings: a document leads to what was made with it, and to nothing else."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifecycle.core.artifact import Artifact, Draft
from lifecycle.ops.registry import Registry
from lifecycle.ops.sightings import sightings


def documents(root: Path, version: int, against: Path | None = None, **splits: list[str]) -> Artifact:
    """An artifact with documents of these paths in each split."""
    draft = Draft(root, "documents", {"version": version}, {}, {} if against is None else {"against_0": against})
    folder = draft.open()
    for split in ("kept", "heldout", "removed"):
        paths = splits.get(split, [])
        ids = [f"{path[0] * 8:0<32}" for path in paths]
        table = pa.table({"id": pa.array(ids, pa.string()), "source": ["s"] * len(paths), "path": paths})
        schema = pa.schema([("id", pa.string()), ("source", pa.string()), ("path", pa.string())])
        pq.write_table(table.cast(schema), folder / f"{split}-00000.parquet")
    return draft.commit({})


@pytest.fixture
def made(tmp_path: Path, make_artifact: Any) -> dict[str, Artifact]:
    root = tmp_path / "run"
    old, new = (
        documents(root, 0, kept=["a.txt", "b.txt"], heldout=["c.txt"]),
        documents(root, 1, kept=["b.txt"], removed=["a.txt"]),
    )
    shards = make_artifact("tokens", {"t": "1"}, inputs={"documents": old})
    model = make_artifact("pretrain", {"w": "1"}, {"lr": 1}, {"tokens": shards})
    other = make_artifact("pretrain", {"w": "2"}, {"lr": 2}, {"documents": new})
    bundle = make_artifact("export", {"b": "1"}, inputs={"pretrain": model})
    return {"old": old, "new": new, "shards": shards, "model": model, "other": other, "bundle": bundle}


def test_what_was_made_with_a_document(made: dict[str, Artifact], tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.sqlite")
    version = registry.register(made["bundle"].path, "dense")
    (seen,) = sightings(tmp_path / "run", registry, "s:a.txt")  # removed in the newer documents
    assert (seen.name, seen.split, seen.documents) == ("s:a.txt", "kept", made["old"].path)
    assert [artifact.path for artifact in seen.made] == [made[name].path for name in ("shards", "model", "bundle")]
    assert [found.hash for found in seen.versions] == [version.hash]
    documents(tmp_path / "run", 2, made["old"].path, kept=["d.txt"])  # compared with it, and not made with it
    (held,) = sightings(tmp_path / "run", None, "c.txt")
    assert held.split == "heldout" and len(held.made) == 3 and not held.versions
    both = sightings(tmp_path / "run", None, "bbbbbbbb")
    assert {found.documents for found in both} == {made["old"].path, made["new"].path}
    assert not sightings(tmp_path / "run", None, "nobody")


def test_a_run_that_has_not_begun_has_no_documents(tmp_path: Path) -> None:
    assert not sightings(tmp_path / "run", None, "a.txt")
