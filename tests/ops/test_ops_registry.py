"""The registry: what never changes, what moves, and what happens when two processes want the same thing."""

import multiprocessing
import shutil
import sqlite3
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.artifact import ArtifactError, Draft
from lifecycle.ops.database import connect
from lifecycle.ops.registry import SCHEMA, Registry, RegistryError, verify
from lifecycle.testing.waiting import LIMIT_S

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.sqlite")


def register(registry: Registry, make_artifact: Any, *texts: str) -> list[str]:
    return [registry.register(make_artifact("export", {"w": text}).path, "chat").hash for text in texts]


def test_a_version_is_its_content(registry: Registry, make_artifact: Any) -> None:
    bundle = make_artifact("export", {"model.safetensors": "weights", "config.json": "{}"})
    version = registry.register(bundle.path, "chat")
    assert version.hash == bundle.content_hash
    assert version.path == bundle.path.resolve()
    assert version.manifest == bundle.manifest
    assert registry.register(bundle.path, "chat") == version
    assert registry.versions() == [version]
    for name in (version.hash, version.hash[:4], version.hash[:9].upper()):
        assert registry.resolve(name) == version


def test_a_version_cannot_be_altered(registry: Registry, make_artifact: Any) -> None:
    bundle = make_artifact("export", {"w": "weights"})
    version = registry.register(bundle.path, "chat")
    with pytest.raises(RegistryError, match=r"registered as 'chat'.*cannot change to 'base'"):
        registry.register(bundle.path, "base")
    (bundle.path / "w").write_text("WEIGHTS")  # the same size
    with pytest.raises(RegistryError, match="files differ from the manifest"):
        registry.register(bundle.path, "chat")
    (bundle.path / "w").write_text("weights and more")
    with pytest.raises(ArtifactError, match="16 bytes, the manifest says 7"):
        verify(version)
    (bundle.path / "w").write_text("weights")
    verify(version)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE versions SET kind = 'x'", "version cannot be altered"),
        ("UPDATE versions SET manifest = '{}'", "version cannot be altered"),
        ("DELETE FROM versions", "version cannot be deleted"),
        ("UPDATE moves SET who = 'x'", "history of an alias cannot be altered"),
        ("DELETE FROM moves", "history of an alias cannot be deleted"),
        ("UPDATE evaluations SET result = ''", "evaluation cannot be altered"),
        ("DELETE FROM evaluations", "evaluation cannot be deleted"),
        ("INSERT INTO moves VALUES (9, 'a', 'move', NULL, 'nowhere', 'w', 'w', '', '')", "FOREIGN KEY"),
    ],
)
def test_the_database_itself_refuses(
    registry: Registry, make_artifact: Any, make_result: Any, statement: str, message: str
) -> None:
    bundle = make_artifact("export", {"w": "weights"})
    version = registry.register(bundle.path, "chat", [make_result("t", [1.0, 0.0])])
    registry.move("production", version.hash, who="ada", why="first")
    db = connect(registry.path, SCHEMA)
    with pytest.raises(sqlite3.IntegrityError, match=message):
        db.execute(statement)
    db.close()


def test_aliases_move_and_roll_back(registry: Registry, make_artifact: Any) -> None:
    a, b, c = register(registry, make_artifact, "a", "b", "c")
    for target in (a, b, c):
        registry.move("production", target, who="ada", why=f"try {target[:4]}")
    registry.move("candidate", c, who="ada", why="same")
    assert registry.aliases() == {"production": c, "candidate": c}
    assert registry.rollback("production", who="bob", why="slow").target == b
    assert registry.rollback("production", who="bob", why="still slow").target == a
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.rollback("production", who="bob", why="more")
    registry.move("production", c, who="ada", why="mended")
    assert registry.rollback("production", who="bob", why="no").target == a
    moves = registry.history("production")
    assert [(m.action, m.source, m.target) for m in moves] == [
        ("move", None, a), ("move", a, b), ("move", b, c), ("rollback", c, b), ("rollback", b, a), ("move", a, c),
        ("rollback", c, a),
    ]  # fmt: skip
    assert registry.resolve("production").hash == a
    assert str(moves[3]).endswith(f"production: {c[:12]} -> {b[:12]} (rollback by bob: slow)")


def test_a_move_from_where_the_alias_is_not(registry: Registry, make_artifact: Any) -> None:
    a, b = register(registry, make_artifact, "a", "b")
    with pytest.raises(RegistryError, match="production was moved by someone else meanwhile: it has no version"):
        registry.move("production", b, who="ada", why="x", expected=a)
    registry.move("production", a, who="ada", why="x", expected="")
    with pytest.raises(RegistryError, match=r"was moved by someone else meanwhile: .* by ada: x"):
        registry.move("production", b, who="bob", why="x", expected="")


def test_moving_to_where_it_is_adds_nothing(registry: Registry, make_artifact: Any) -> None:
    (a,) = register(registry, make_artifact, "a")
    first = registry.move("production", a, who="ada", why="first")
    assert registry.move("production", a[:8], who="bob", why="again") == first
    assert registry.history("production") == [first]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "rollback"]), max_size=12))
def test_rollback_is_the_undo_of_a_stack(tmp_path_factory: pytest.TempPathFactory, actions: list[str]) -> None:
    root = tmp_path_factory.mktemp("stack")
    registry = Registry(root / "registry.sqlite")
    hashes = {name: registry.register(_bundle(root, name), "chat").hash for name in "abc"}
    stack: list[str] = []
    for action in actions:
        if action != "rollback":
            registry.move("production", hashes[action], who="w", why="y")
            if stack[-1:] != [hashes[action]]:
                stack.append(hashes[action])
        elif len(stack) > 1:
            registry.rollback("production", who="w", why="y")
            stack.pop()
        else:
            with pytest.raises(RegistryError, match="no earlier version"):
                registry.rollback("production", who="w", why="y")
        assert registry.aliases() == ({"production": stack[-1]} if stack else {})


def test_names_that_are_not_known(registry: Registry, make_artifact: Any) -> None:
    with pytest.raises(RegistryError, match="no registry here yet"):
        registry.resolve("production")
    assert not registry.path.exists()
    (a,) = register(registry, make_artifact, "a")
    registry.move("production", a, who="ada", why="first")
    with pytest.raises(RegistryError, match=rf"'prodution'; did you mean 'production'\?.*newest versions: {a[:12]}"):
        registry.resolve("prodution")
    with pytest.raises(RegistryError, match="no version or alias"):
        registry.resolve(a[:3])  # too short to be meant
    with pytest.raises(RegistryError, match="no version or alias"):
        registry.resolve("*")
    for alias in ("Production", "deadbeef", "a b", ""):
        with pytest.raises(RegistryError, match="use lower-case letters"):
            registry.move(alias, a, who="ada", why="x")


def test_a_prefix_of_two_versions_is_refused(registry: Registry, make_artifact: Any) -> None:
    register(registry, make_artifact, "a")
    with connect(registry.path, SCHEMA) as db:
        for tail in ("00", "01"):
            db.execute(
                "INSERT INTO versions SELECT ?, kind, path, manifest, registered FROM versions LIMIT 1",
                ("f" * 62 + tail,),
            )
    with pytest.raises(RegistryError, match="beginning of 2 versions"):
        registry.resolve("ffff")


def test_a_bundle_may_be_moved_with_the_registry(registry: Registry, make_artifact: Any, tmp_path: Path) -> None:
    (a,) = register(registry, make_artifact, "a")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(tmp_path / "run", elsewhere / "run")
    shutil.move(registry.path, elsewhere / "registry.sqlite")
    moved = Registry(elsewhere / "registry.sqlite").resolve(a)
    verify(moved)
    assert moved.path.is_relative_to(elsewhere)
    shutil.move(elsewhere / "run", tmp_path / "back")
    (bundle,) = (tmp_path / "back").glob("*/")
    verify(Registry(elsewhere / "registry.sqlite").register(bundle, "chat"))


def test_evaluations_add_up_and_the_newest_counts(registry: Registry, make_artifact: Any, make_result: Any) -> None:
    bundle = make_artifact("export", {"w": "a"})
    first, second = make_result("t", [1.0, 0.0]), make_result("t", [1.0, 1.0])
    version = registry.register(bundle.path, "chat", [first])
    registry.register(bundle.path, "chat", [first])
    registry.register(bundle.path, "chat", [second, make_result("u", [2.0, 3.0])])
    assert {task: result.mean for task, result in registry.evaluations(version.hash).items()} == {"t": 1.0, "u": 2.5}
    registry.register(bundle.path, "chat", [first])
    assert registry.evaluations(version.hash)["t"] == first
    with sqlite3.connect(registry.path) as db:
        assert db.execute("SELECT count(*) FROM evaluations WHERE task = 't'").fetchone() == (3,)


def test_an_artifact_that_is_not_there(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no finished artifact"):
        registry.register(tmp_path / "nothing", "chat")


@pytest.mark.parametrize("damage", ["text", "head", "middle"])
def test_a_damaged_registry_is_named(registry: Registry, make_artifact: Any, damage: str) -> None:
    (a,) = register(registry, make_artifact, "a")
    content = registry.path.read_bytes()
    if damage == "text":
        registry.path.write_text("not a database, but longer than a header " * 9)
    elif damage == "head":
        registry.path.write_bytes(b"\0" * 100 + content[100:])
    else:
        registry.path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(RegistryError, match=r"registry\.sqlite: .*restore a copy"):
        registry.resolve(a)


def test_a_database_of_another_kind_is_refused(registry: Registry, make_artifact: Any) -> None:
    with sqlite3.connect(registry.path) as db:
        db.execute("CREATE TABLE t (x)")
    bundle = make_artifact("export", {"w": "a"})
    with pytest.raises(RegistryError, match="expected a model registry of version 1, got a database of another kind"):
        registry.register(bundle.path, "chat")


def _bundle(root: Path, text: str) -> Path:
    draft = Draft(root / "run", "export", {"text": text}, {})
    (draft.open() / "w").write_text(text)
    return draft.commit({}).path


def _promote(path: Path, target: str, expected: str, who: str, start: Barrier, results: Any) -> None:
    registry = Registry(path)
    start.wait()
    try:
        registry.move("production", target, who=who, why="race", expected=expected)
        results.put((who, target, ""))
    except RegistryError as error:
        results.put((who, target, str(error)))


def test_of_two_promotions_at_once_one_wins(registry: Registry, make_artifact: Any) -> None:
    a, b, c = register(registry, make_artifact, "a", "b", "c")
    registry.move("production", a, who="ada", why="first")
    start, results = SPAWN.Barrier(2), SPAWN.Queue()
    racers = [
        SPAWN.Process(target=_promote, args=(registry.path, target, a, who, start, results))
        for target, who in ((b, "bob"), (c, "cyd"))
    ]
    for racer in racers:
        racer.start()
    result = [results.get(timeout=LIMIT_S) for _ in racers]
    for racer in racers:
        racer.join()
    (winner,) = [(who, target) for who, target, error in result if not error]
    (complaint,) = [error for _, _, error in result if error]
    assert f"by {winner[0]}: race" in complaint
    assert [(m.source, m.target, m.who) for m in registry.history("production")] == [
        (None, a, "ada"), (a, winner[1], winner[0]),
    ]  # fmt: skip


def _register_and_move(path: Path, bundles: list[Path], who: str, start: Barrier) -> None:
    registry = Registry(path)
    start.wait()
    for bundle in bundles:
        registry.move("candidate", registry.register(bundle, "chat").hash, who=who, why="load")


def test_processes_that_write_at_once_lose_nothing(registry: Registry, make_artifact: Any) -> None:
    """From a registry that does not exist yet: it is made once, and every move is in the history, in one chain."""
    bundles = [[make_artifact("export", {"w": f"{p} {i}"}).path for i in range(12)] for p in range(3)]
    start = SPAWN.Barrier(3)
    writers = [
        SPAWN.Process(target=_register_and_move, args=(registry.path, bundles[p], str(p), start)) for p in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(registry.versions()) == 36
    moves = registry.history("candidate")
    assert len(moves) == 36
    assert [move.source for move in moves] == [None, *(move.target for move in moves[:-1])]
    assert [p.name for p in registry.path.parent.glob(".registry*")] == []
