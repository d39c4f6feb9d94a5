"""The artifact chain: renamed whole, refused when half-written or damaged, keyed by what it is made from."""

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from lifecycle.core import artifact as artifacts
from lifecycle.core.artifact import (
    LEDGER,
    MANIFEST,
    Artifact,
    ArtifactError,
    Draft,
    FileFacts,
    artifact_key,
    open_artifact,
    require_intact,
)
from lifecycle.core.file_hashes import REMEMBERED, FileHashes
from lifecycle.testing.waiting import wait_until


def made(root: Path, stage: str = "data", inputs: dict[str, Artifact] | None = None, text: str = "abc") -> Artifact:
    draft = Draft(root, stage, {"a": 1}, inputs or {})
    folder = draft.open()
    (folder / "sub").mkdir()
    (folder / "sub" / "rows.txt").write_text(text)
    return draft.commit({"rows": 3})


def test_a_finished_artifact_is_read_back(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    assert artifact.path.name == f"data-{artifact.manifest.key[:12]}"
    assert open_artifact(artifact.path) == artifact
    abc = hashlib.sha256(b"abc").hexdigest()
    assert artifact.manifest.files == {"sub/rows.txt": FileFacts(bytes=3, sha256=abc)} and artifact.stats == {"rows": 3}
    assert {path.name for path in tmp_path.iterdir()} == {artifact.path.name, REMEMBERED}


def test_a_half_written_artifact_is_refused_and_found_again_by_its_stage(tmp_path: Path) -> None:
    draft = Draft(tmp_path, "data", {"a": 1}, {})
    (draft.open() / "part").write_text("x")
    assert not draft.final_path.exists()
    for path in (draft.final_path, draft.path):
        with pytest.raises(ArtifactError, match=r"no finished artifact here \(no manifest\.json\)"):
            open_artifact(path)
    again = Draft(tmp_path, "data", {"a": 1}, {})
    assert (again.open() / "part").read_text() == "x"


def test_damage_is_named_with_what_to_do(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    file = artifact.path / "sub" / "rows.txt"
    file.write_text("ab")
    with pytest.raises(ArtifactError, match=r"rows\.txt: 2 bytes, the manifest says 3; delete .* rerun"):
        open_artifact(artifact.path)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"rows\.txt: no bytes, the manifest says 3"):
        open_artifact(artifact.path)
    (artifact.path / MANIFEST).write_text('{"stage": "data"')
    with pytest.raises(ArtifactError, match="not a manifest of this version"):
        open_artifact(artifact.path)


def test_a_file_changed_at_equal_length_is_named(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    require_intact(artifact)
    file = artifact.path / "sub" / "rows.txt"
    before = file.stat()
    file.write_text("abd")
    for hashes in (None, FileHashes(tmp_path)):
        with pytest.raises(ArtifactError, match=r"data-\w+: sub/rows\.txt changed after it was finished; restore"):
            require_intact(open_artifact(artifact.path), hashes)
    file.write_text("abc")
    require_intact(artifact, FileHashes(tmp_path))
    file.write_text("abd")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # a change that hides: found only by reading all
    FileHashes(tmp_path).remember(artifact.path, {"sub/rows.txt": artifact.manifest.files["sub/rows.txt"].sha256})
    require_intact(artifact, FileHashes(tmp_path))
    with pytest.raises(ArtifactError, match="changed"):
        require_intact(artifact)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"wall_s": 1}', '{"wall_s": null, "cpu_s": 1}'])
def test_a_damaged_ledger_is_named(tmp_path: Path, content: str) -> None:
    draft = Draft(tmp_path, "data", {"a": 1}, {})
    (draft.open() / LEDGER).write_text(content)
    with pytest.raises(ArtifactError, match=r"\.cost\.json: damaged; delete it"):
        Draft(tmp_path, "data", {"a": 1}, {}).open()


def test_what_cannot_be_remembered_is_hashed_again(tmp_path: Path) -> None:
    (tmp_path / REMEMBERED).mkdir()  # no file can take its place
    artifact = made(tmp_path)
    require_intact(artifact, FileHashes(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {artifact.path.name, REMEMBERED}


def test_a_damaged_artifact_is_replaced_by_its_stage(tmp_path: Path) -> None:
    first = made(tmp_path)
    (first.path / "sub" / "rows.txt").unlink()
    second = made(tmp_path)
    assert second.path == first.path and open_artifact(second.path) == second


def test_a_key_depends_on_stage_config_and_inputs_and_not_on_their_order() -> None:
    key = artifact_key("sft", {"a": 1, "b": {"c": 2, "d": 3}}, {"x": "1", "y": "2"})
    assert artifact_key("sft", {"b": {"d": 3, "c": 2}, "a": 1}, {"y": "2", "x": "1"}) == key
    others = [
        artifact_key("prefer", {"a": 1, "b": {"c": 2, "d": 3}}, {"x": "1", "y": "2"}),
        artifact_key("sft", {"a": 1, "b": {"c": 2, "d": 4}}, {"x": "1", "y": "2"}),
        artifact_key("sft", {"a": 1, "b": {"c": 2, "d": 3}}, {"x": "1", "y": "3"}),
        artifact_key("sft", {"a": 1, "b": {"c": 2, "d": 3}}, {"x": "1"}),
    ]
    assert len({key, *others}) == 5


def test_the_content_hash_says_what_is_there(tmp_path: Path) -> None:
    same = [made(tmp_path / name, text=text) for name, text in (("1", "abc"), ("2", "abc"), ("3", "abd"))]
    assert same[0].content_hash == same[1].content_hash != same[2].content_hash
    renamed = tmp_path / "4"
    shutil.copytree(same[0].path, renamed)
    (renamed / "sub" / "rows.txt").rename(renamed / "sub" / "row.txt")
    assert artifacts.hash_files(renamed, ["sub/row.txt"]) != same[0].content_hash


def test_inputs_are_kept_by_folder_and_by_content(tmp_path: Path) -> None:
    data = made(tmp_path)
    child = made(tmp_path, "tokens", {"data": data})
    assert child.manifest.inputs == {"data": data.path.name}
    assert child.manifest.input_hashes == {"data": data.content_hash}
    other = made(tmp_path / "other", text="changed")
    assert Draft(tmp_path, "tokens", {"a": 1}, {"data": other}).key != child.manifest.key


def test_a_given_content_hash_replaces_the_files(tmp_path: Path) -> None:
    draft = Draft(tmp_path, "pretrain", {}, {})
    draft.open()
    assert draft.commit({}, content_hash="f00d").content_hash == "f00d"


def test_the_cost_of_a_killed_run_is_not_forgotten(tmp_path: Path) -> None:
    killed = Draft(tmp_path, "data", {}, {})
    (killed.open() / LEDGER).write_text(json.dumps({"wall_s": 100.0, "cpu_s": 50.0}))
    draft = Draft(tmp_path, "data", {}, {})
    draft.open()
    manifest = draft.commit({}).manifest
    assert manifest.wall_s > 99 and manifest.cpu_s > 49
    assert manifest.files == {}  # the ledger is no part of the artifact


def test_a_clock_that_is_set_back_takes_no_time_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = Draft(tmp_path, "data", {}, {})
    draft.open()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert draft.commit({}).manifest.wall_s >= 0


def test_the_ledger_is_kept_while_a_stage_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "LEDGER_EVERY_S", 0.01)
    draft = Draft(tmp_path, "data", {}, {})
    ledger = draft.open() / LEDGER
    with draft.keeping_costs():
        wait_until(ledger.is_file)
    assert json.loads(ledger.read_text())["wall_s"] > 0


def test_what_a_kill_left_of_writing_manifest_or_ledger_is_not_part_of_the_artifact(tmp_path: Path) -> None:
    undisturbed = made(tmp_path / "one")
    draft = Draft(tmp_path / "two", "data", {"a": 1}, {})
    for name in (MANIFEST, LEDGER):
        (draft.open() / f"{name}.tmp").write_text("{")
    (draft.path / "sub").mkdir()
    (draft.path / "sub" / "rows.txt").write_text("abc")
    artifact = draft.commit({"rows": 3})
    assert open_artifact(artifact.path).content_hash == undisturbed.content_hash


def test_code_version_begins_with_the_package_version() -> None:
    assert re.fullmatch(r"0\.1\.0(\+[0-9a-f]{7,}(\.dirty)?)?", artifacts.code_version())


def test_text_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    artifacts.write_text(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü" and os.listdir(tmp_path) == ["a.json"]
