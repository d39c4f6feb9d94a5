"""Stages whose inputs are in a store fetch the files that they open, once for a machine, and no others."""

from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from lifecycle.core.artifact import MANIFEST, Artifact
from lifecycle.core.config import load_config
from lifecycle.core.progress import Silent
from lifecycle.core.store import Store
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph
from lifecycle.stages.opened import figures, matching
from lifecycle.stages.reported import _is_read
from lifecycle.stages.storage import readable
from tests.artifacts import MakeArtifact

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
SHORT = [
    f"train.{name}.{short}" for name in ("pretrain", "sft", "prefer") for short in ("steps=6", "checkpoint.every=2")
]
type Downloads = list[str]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Downloads:
    """The addresses of the objects that are read into files."""
    download, addresses = Store.download, list[str]()

    def noted(self: Store, name: str, file: Path) -> str:
        addresses.append(f"{self.url}/{name}")
        return download(self, name, file)

    monkeypatch.setattr(Store, "download", noted)
    return addresses


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Goes to a machine by name: the folder of the user's cache there."""
    return lambda name: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def test_a_part_is_fetched_and_later_the_rest(
    in_memory: dict[str, MemoryStore], machine: Callable[[str], None], downloads: Downloads, make_artifact: MakeArtifact
) -> None:
    made = make_artifact("tokens", {"a": "1", "b": "2", "c": "3"})
    config = load_config(RunConfig, DEBUG, ["root=s3://bucket/runs"])
    machine("one")
    readable(config).publish(made)
    there = Artifact(config.folder / made.path.name, made.manifest)

    def fetch(*names: str) -> list[str]:
        downloads.clear()
        readable(config).fetch(there, names or None)
        return sorted(address.rpartition("/")[2] for address in downloads)

    assert fetch("b") == ["b"] and fetch("b") == []
    assert [path.name for path in there.path.iterdir()] == ["b"]  # no manifest: nobody takes it for the whole
    (there.path / "b").write_text("X")
    (there.path / "other").write_text("of another content with this key")
    assert fetch("a", "b") == ["a", "b"]
    assert fetch() == ["c"] and fetch() == fetch("a") == []
    assert sorted(path.name for path in there.path.iterdir()) == sorted(["a", "b", "c", MANIFEST])
    assert [(there.path / name).read_text() for name in "abc"] == ["1", "2", "3"]
    (there.path / MANIFEST).unlink()
    assert fetch() == [] and (there.path / MANIFEST).is_file()  # what is right is not read again


def test_a_pattern_goes_through_folders(make_artifact: MakeArtifact) -> None:
    made = make_artifact("tokens", {"kept-0.parquet": "", "removed-0.parquet": "", "funnel.json": ""})
    assert set(matching("kept-*", "*.json")(made)) == {"kept-0.parquet", "funnel.json"}


def test_a_report_reads_of_documents_what_was_found_and_no_text(make_artifact: MakeArtifact) -> None:
    files = {"kept-0.parquet": "", "removed-0.parquet": "", "funnel.json": "", "contamination.parquet": ""}
    made = make_artifact("documents", files)
    read = {"funnel.json", "contamination.parquet"}
    assert {*figures(made)} == {name for name in files if _is_read(f"documents-web-0a/{name}")} == read


@pytest.mark.long
@pytest.mark.xdist_group("s3")
def test_each_stage_is_made_on_an_empty_machine_from_what_it_opens(
    s3: str, machine: Callable[[str], None], downloads: Downloads
) -> None:
    """Of the debug run: each stage's artifact is deleted in the store and made again somewhere else."""
    config = load_config(RunConfig, DEBUG, [f"root={s3}/opened", *SHORT])
    machine("one")
    made = bring_up_to_date(config, ("report",), Silent())
    first = dict(made)
    store = Store(f"{s3}/opened/debug")
    for name, stage in build_graph(config).items():
        machine(f"for {name}")
        downloads.clear()
        store.delete(store.list(made[name].path.name))
        made |= {name: bring_up_to_date(config, (name,), Silent())[name]}
        read = [address.removeprefix(f"{store.url}/") for address in downloads]
        of_inputs = [file for file in read if file.split("/")[0] in {made[i].path.name for i in stage.needs}]
        opened = {f"{made[i].path.name}/{file}" for i in stage.needs for file in stage.opened(made[i])}
        assert sorted(of_inputs) == sorted(opened), name
        sizes = [[made[i].manifest.files[f].bytes for f in files(made[i])] for i in stage.needs for files in (
            stage.opened, lambda artifact: artifact.manifest.files)]  # fmt: skip
        opens, has = sizes[::2], sizes[1::2]
        print(f"{name}: {sum(map(len, opens))} of {sum(map(len, has))} files, "
              f"{sum(map(sum, opens)):,} of {sum(map(sum, has)):,} bytes")  # fmt: skip
    for name in ("tokens", "rows", "prefer", "export", "evaluate-prefer"):
        assert made[name].content_hash == first[name].content_hash
