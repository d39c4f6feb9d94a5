"""A run whose root is an address: what one machine finishes, another goes on from, and only one at a time."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from lifecycle.core.artifact import Artifact, ArtifactError, Draft, intact_hash
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.fetched import local_copy
from lifecycle.core.lease import Lease, LeaseError
from lifecycle.core.progress import Silent
from lifecycle.core.published import PublishedArtifacts
from lifecycle.core.store import Store, StoreError
from lifecycle.ops.registry import Registry
from lifecycle.ops.registry_copy import RegistryCopy
from lifecycle.stages import chain
from lifecycle.stages.chain import bring_up_to_date, finished_stage, states
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph
from lifecycle.stages.stage import Outcome, Stage
from lifecycle.stages.storage import changing_registry, owned, read_registry
from lifecycle.testing.notes import Notes
from tests.artifacts import MakeArtifact

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
Machine = Callable[[str], Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Goes to a machine by name: the folder of the user's cache there."""

    def go(name: str) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return tmp_path / name

    return go


class Counting:
    """Three stages in a row that count how often they run; each writes its name and those of its inputs' files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        graph: dict[str, Stage] = {}
        for name, before in (("first", ()), ("second", ("first",)), ("third", ("second",))):
            graph[name] = Stage(name, "counting", before, lambda c: {"seed": c.seed})
        monkeypatch.setattr(chain, "build_graph", lambda config: graph)
        monkeypatch.setattr(Stage, "load", lambda stage: lambda *call: self.run(stage.name, *call))

    def run(self, name: str, config: RunConfig, inputs: Any, out: Path, progress: Any) -> Outcome:
        self.runs.append(name)
        (out / "deep").mkdir(exist_ok=True)
        (out / "deep" / "text").write_text(
            name + "".join((i.path / "deep" / "text").read_text() for i in inputs.values())
        )
        return Outcome({"name": name})


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def read(*overrides: str, root: str = "s3://bucket/runs") -> RunConfig:
    return load_config(RunConfig, DEBUG, (f"root={root}", *overrides))


@pytest.mark.xdist_group("s3")
def test_another_machine_finds_what_one_has_finished_and_fetches_what_it_needs(
    bucket: str, counting: Counting, machine: Machine
) -> None:
    root = f"{bucket}/runs"
    machine("one")
    made = bring_up_to_date(read(root=root), ("second",), Silent())
    there = machine("two")
    found = bring_up_to_date(read(root=root), ("third",), told := Notes())
    assert counting.runs == ["first", "second", "third"]
    assert found["second"].manifest == made["second"].manifest
    here = there / "lifecycle" / "runs" / root.replace("://", "/") / "debug"
    assert sorted(path.name.split("-")[0] for path in here.glob("*-*")) == ["second", "third"]  # not the first
    assert [note for note in told.notes if note.startswith("fetching second-")]
    assert (found["third"].path / "deep" / "text").read_text() == "thirdsecondfirst"
    machine("three")
    assert [state.artifact is not None for state in states(read(root=root), ("third",))] == [True] * 3
    assert (finished_stage(read(root=root), "first").path / "deep" / "text").read_text() == "first"
    assert counting.runs == ["first", "second", "third"]


def test_what_was_finished_but_not_published_is_published(
    counting: Counting, machine: Machine, in_memory: dict[str, MemoryStore]
) -> None:
    """Killed between the two; and a manifest that is missing in the store makes nothing of the files there."""
    machine("one")
    made = bring_up_to_date(read(), ("first",), Silent())
    name = made["first"].path.name
    store = Store("s3://bucket/runs/debug")
    store.delete([f"{name}/manifest.json"])
    machine("two")
    assert [state.artifact for state in states(read(), ("first",))] == [None]
    machine("one")
    bring_up_to_date(read(), ("first",), Silent())
    assert f"{name}/manifest.json" in store.list() and counting.runs == ["first"]


def test_a_damaged_object_is_named_and_a_cut_answer_is_asked_for_again(
    counting: Counting, machine: Machine, in_memory: dict[str, MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    made = bring_up_to_date(read(), ("first",), Silent())
    store, name = Store("s3://bucket/runs/debug"), f"{made['first'].path.name}/deep/text"
    download, cut = Store.download, [0]

    def cut_once(self: Store, name: str, file: Path) -> str:
        cut[0] += 1
        found = download(self, name, file)
        return "0" * 64 if cut[0] == 1 else found

    monkeypatch.setattr(Store, "download", cut_once)
    machine("two")
    assert (finished_stage(read(), "first").path / "deep" / "text").read_text() == "first" and cut == [2]
    for content, problem in (
        (b"fir", "3 bytes of SHA-256"),
        (b"FIRST", "5 bytes of SHA-256"),
        (None, "no such object"),
    ):
        store.delete([name]) if content is None else store.write(name, content)
        machine(f"three {content}")
        with pytest.raises(ArtifactError, match=rf"{name}: {problem}.*delete s3://.*made again"):
            finished_stage(read(), "first")
    store.delete(list(store.list(made["first"].path.name)))  # as it says
    bring_up_to_date(read(), ("first",), Silent())
    assert counting.runs == ["first", "first"]


def test_a_damaged_local_copy_is_fetched_again(
    counting: Counting, machine: Machine, in_memory: dict[str, MemoryStore]
) -> None:
    machine("one")
    made = bring_up_to_date(read(), ("first",), Silent())
    (made["first"].path / "deep" / "text").write_text("FIRST")  # of equal length
    again = bring_up_to_date(read(), ("second",), Silent())
    assert (again["second"].path / "deep" / "text").read_text() == "secondfirst"
    assert counting.runs == ["first", "second"] and not list(made["first"].path.parent.glob("*.partial"))


def test_a_killed_fetch_goes_on(counting: Counting, machine: Machine, in_memory: dict[str, MemoryStore]) -> None:
    machine("one")
    name = bring_up_to_date(read(), ("first",), Silent())["first"].path.name
    machine("two")
    folder = read().folder / name / "deep"
    folder.mkdir(parents=True)
    (folder / "text").write_text("fi")
    (folder / "text.tmp").write_text("of the kill")
    assert (finished_stage(read(), "first").path / "deep" / "text").read_text() == "first"


def test_of_two_readers_one_fetches(
    counting: Counting, machine: Machine, in_memory: dict[str, MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as `serve` and `chat` that start together."""
    machine("one")
    bring_up_to_date(read(), ("first",), Silent())
    download, downloaded = Store.download, list[str]()

    def slowly(self: Store, name: str, file: Path) -> str:
        downloaded.append(name)
        time.sleep(0.2)
        return download(self, name, file)

    monkeypatch.setattr(Store, "download", slowly)
    machine("two")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: finished_stage(read(), "first"), range(2)))
    assert [(artifact.path / "deep" / "text").read_text() for artifact in found] == ["first"] * 2
    assert downloaded == ["deep/text"]


def test_a_run_in_a_store_has_one_owner(
    counting: Counting, machine: Machine, in_memory: dict[str, MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    monkeypatch.setattr("lifecycle.core.lease.DURATION_S", 0.6)
    monkeypatch.setattr(Lease.__init__, "__defaults__", (0.6, 0.0))
    with Lease(Store("s3://bucket/runs/debug"), Silent()).holding():
        with pytest.raises(LeaseError, match=r"s3://bucket/runs/debug: owned by process .* set name=NAME"):
            bring_up_to_date(read(), ("first",), Silent())
        assert [state.artifact for state in states(read(), ("first",))] == [None]  # reading needs no lease
    bring_up_to_date(read(), ("first",), Silent())
    assert counting.runs == ["first"]


def test_an_owner_that_lost_its_lease_publishes_nothing(
    counting: Counting, machine: Machine, in_memory: dict[str, MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    run = counting.run

    def lose(name: str, *call: Any) -> Outcome:
        stolen = Store("s3://bucket/runs/debug")
        stolen.write("lease.json", stolen.read("lease.json").replace(b'"process": "', b'"process": "not'))
        monkeypatch.setattr(Lease, "_renew_or_stop", lambda lease: None)  # before its next renewal
        monkeypatch.setattr("lifecycle.core.lease._now", lambda: 1e9)  # it was suspended meanwhile
        return run(name, *call)

    monkeypatch.setattr(counting, "run", lose)
    with pytest.raises(LeaseError, match="lost its lease"):
        bring_up_to_date(read(), ("first",), Silent())
    assert not [name for name in Store("s3://bucket/runs/debug").list() if name.startswith("first-")]


def test_the_registry_follows_the_run(
    make_artifact: MakeArtifact, machine: Machine, in_memory: dict[str, MemoryStore]
) -> None:
    bundle = make_artifact("export", {"model.safetensors": "weights"})
    machine("one")
    config = read()
    with changing_registry(config, Silent()):
        version = Registry(config.registry_path).register(bundle.path, "base")
        Registry(config.registry_path).move("production", version.hash, who="me", why="first")
    machine("two")
    elsewhere = read()
    read_registry(elsewhere)
    assert Registry(elsewhere.registry_path).resolve("production").hash == version.hash
    with changing_registry(elsewhere, Silent()):
        Registry(elsewhere.registry_path).move("candidate", version.hash, who="me", why="second")
    machine("one")
    read_registry(config)
    assert Registry(config.registry_path).aliases().keys() == {"production", "candidate"}
    in_memory.clear()  # a bucket that was lost
    with changing_registry(config, Silent()):
        pass
    assert "registry.db" in Store("s3://bucket/runs/debug").list()


def test_a_version_is_promoted_while_the_run_goes_on(
    make_artifact: MakeArtifact, machine: Machine, in_memory: dict[str, MemoryStore]
) -> None:
    bundle = make_artifact("export", {"model.safetensors": "weights"})
    machine("one")
    config = read()
    here = Registry(config.registry_path)
    with owned(config, Silent()) as artifacts:
        with changing_registry(config, Silent()):
            version = here.register(bundle.path, "base")
            here.move("production", version.hash, who="me", why="by hand")
        stale = RegistryCopy(Store("s3://bucket/runs/debug"), config.registry_path).read()
        machine("two")
        elsewhere = read()
        with changing_registry(elsewhere, Silent()):
            Registry(elsewhere.registry_path).move("candidate", version.hash, who="me", why="by hand")
        machine("one")
        with artifacts.making(
            Stage("register", "register", (), lambda c: {}), Draft(config.folder, "register", {}, {})
        ):
            assert here.aliases().keys() == {"production", "candidate"}
            here.move("newest", version.hash, who="run", why="registered")
        RegistryCopy(Store("s3://bucket/runs/debug"), config.registry_path).take(stale)  # read before, taken after
        assert here.aliases().keys() == {"production", "candidate", "newest"}
        machine("two")
        read_registry(elsewhere)
    assert Registry(elsewhere.registry_path).aliases().keys() == {"production", "candidate", "newest"}


def test_a_failed_change_ends_as_it_failed_and_is_written_by_the_next_run(
    make_artifact: MakeArtifact, machine: Machine, in_memory: dict[str, MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_artifact("export", {"model.safetensors": "weights"})
    machine("one")
    config, write = read(), Store.write

    def fail(self: Store, name: str, content: bytes) -> None:
        raise StoreError("no answer")

    with pytest.raises(InterruptedError), changing_registry(config, told := Notes()):
        Registry(config.registry_path).register(bundle.path, "base")
        monkeypatch.setattr(Store, "write", fail)
        raise InterruptedError("stopped")
    assert told.notes == ["the registry is written to the store by the next change or run: no answer"]
    monkeypatch.setattr(Store, "write", write)
    with owned(config, Silent()):
        assert "registry.db" in Store("s3://bucket/runs/debug").list()


def test_a_root_where_no_folder_can_be_made_is_told_with_the_setting_to_change() -> None:
    with (
        pytest.raises(ConfigError, match=r"^/proc/self/debug: no folder can be made there .*another place with root="),
        owned(read(root="/proc/self"), Silent()),
    ):
        pass


def test_a_registry_that_changed_on_both_sides_is_not_overwritten(
    make_artifact: MakeArtifact, machine: Machine, in_memory: dict[str, MemoryStore]
) -> None:
    bundle = make_artifact("export", {"model.safetensors": "weights"})
    store = Store("s3://bucket/runs/debug")
    for name in ("one", "two"):
        machine(name)
        registry = Registry(read().registry_path)
        version = registry.register(bundle.path, "base")
        if name == "one":
            RegistryCopy(store, registry.path).push()
    with pytest.raises(StoreError, match=r"have both changed .*; keep one"):
        RegistryCopy(store, registry.path).pull()
    shutil.rmtree(registry.path.parent)  # as it says
    registry.path.parent.mkdir(parents=True)
    RegistryCopy(store, registry.path).pull()
    assert registry.resolve(version.hash)


def test_an_address_without_a_store_is_refused_when_the_run_file_is_read() -> None:
    with pytest.raises(ConfigError, match="az://bucket: no storage of this kind"):
        read(root="az://bucket")
    assert read(root="/some/folder/").folder == Path("/some/folder/debug")
    assert read(root="gs://bucket/x/").store_url == "gs://bucket/x/debug"


def test_a_bundle_at_an_address_is_an_input_like_one_in_a_folder(
    tmp_path: Path, machine: Machine, in_memory: dict[str, MemoryStore], make_artifact: MakeArtifact
) -> None:
    """Its content decides the stage's key; it is copied where the key is needed, and again when it has changed."""
    bundle = make_artifact("export", {"config.json": "{}", "model.safetensors": "weights"})
    store = Store("gs://models/one")
    PublishedArtifacts(Store("gs://models")).publish(Artifact(bundle.path.rename(tmp_path / "one"), bundle.manifest))
    for name in ("one", "two"):
        machine(name)
        config = read("train.pretrain.from=gs://models/one", "tokenizer={kind: bytes}", root=str(tmp_path / name))
        start = config.starts["pretrain"]
        assert start.url == "gs://models/one" and start.bundle is not None and not start.bundle.exists()
        drafts = {state.stage.name: state.draft for state in states(config, ("tokenizer",))}
        graph = build_graph(config)["pretrain"]
        draft = chain._draft(config, Stage("pretrain", "train", (), graph.settings, graph.bundles), {})
        assert draft.input_hashes == {"bundle": bundle.content_hash} and drafts.keys() >= {"tokenizer"}
    store.write("model.safetensors", b"WEIGHTS")
    local_copy("gs://models/one")
    with pytest.raises(ArtifactError, match=r"model.safetensors changed after it was finished"):
        intact_hash(start.bundle)
