"""Sources: globs, formats, errors that name the setting, and a fingerprint that sees every change and nothing else."""

import os
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from lifecycle.core.config import ConfigError, validate
from lifecycle.core.store import Store, StoreError
from lifecycle.data.config import DEFAULT_EXCLUDE, DataConfig, SourceConfig
from lifecycle.data.reading.extract import extract_file
from lifecycle.data.reading.raw import Skipped
from lifecycle.data.reading.sources import (
    _is_included,
    _matches,
    fetch_sources,
    format_of,
    list_files,
    source_fingerprint,
)
from tests.website import Website


def config(*sources: dict[str, Any]) -> DataConfig:
    return validate(DataConfig, {"sources": [{"name": f"s{n}", **source} for n, source in enumerate(sources)]})


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.py", "a.md", "sub/c.txt", "sub/deep/d.html", "sub/__pycache__/x.py", ".git/y.py", "test/e.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_files_are_sorted_and_typed(tree: Path) -> None:
    found = list_files(config({"path": str(tree)}))
    assert [(f.path, f.format) for f in found] == [
        ("a.md", "markdown"),
        ("b.py", "code"),
        ("sub/c.txt", "text"),
        ("sub/deep/d.html", "html"),
        ("test/e.py", "code"),
    ]


def test_include_and_exclude(tree: Path) -> None:
    chosen = config(
        {"path": str(tree), "include": ["**/*.py", "sub/**/*"], "exclude": [*DEFAULT_EXCLUDE, "test", "sub/deep"]}
    )
    assert [f.path for f in list_files(chosen)] == ["b.py", "sub/c.txt"]


def test_single_file_and_forced_format(tree: Path) -> None:
    found = list_files(config({"path": str(tree / "b.py"), "format": "text"}, {"path": str(tree / "sub")}))
    assert [(f.source, f.path, f.format) for f in found] == [
        (0, "b.py", "text"), (1, "c.txt", "text"), (1, "deep/d.html", "html"),
    ]  # fmt: skip


def test_links_to_folders_are_not_followed(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "link.txt").symlink_to(tree / "sub" / "c.txt")
    assert [f.path for f in list_files(config({"path": str(tree), "include": ["**/*.txt"]}))] == [
        "link.txt",
        "sub/c.txt",
    ]


def test_what_cannot_be_read_is_told(
    tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Links to nothing and in a circle, a folder that cannot be listed, a file that is gone since; what is no file."""
    (tree / "none.txt").symlink_to(tree / "nothing.txt")
    (tree / "one.txt").symlink_to(tree / "other.txt")
    (tree / "other.txt").symlink_to(tree / "one.txt")
    os.mkfifo(tree / "pipe.txt")
    (tree / "zero.txt").symlink_to("/dev/zero")
    (tree / "sub" / "away").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    (tree / "gone.txt").write_text("gone")
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    chosen = config({"path": str(tree)})
    listed = list_files(chosen)
    (tree / "gone.txt").unlink()
    source_fingerprint(chosen)
    found = {file.path: list(extract_file(file, chosen.sources[0], 1000)) for file in listed}
    lost = {path: entries[0].detail for path, entries in found.items() if isinstance(entries[0], Skipped)}
    assert lost == {
        "none.txt": "No such file or directory", "gone.txt": "No such file or directory",
        "one.txt": "Too many levels of symbolic links", "other.txt": "Too many levels of symbolic links",
        "sub/deep": "a folder that cannot be listed",
        "pipe.txt": "a pipe, socket or device", "zero.txt": "a pipe, socket or device",
        "sub/away": "a link to a folder outside the source, which is not followed: make it a source of its own",
    }  # fmt: skip
    reasons = {path: entries[0].reason for path, entries in found.items() if isinstance(entries[0], Skipped)}
    assert {path for path, reason in reasons.items() if reason == "no_text"} == {"pipe.txt", "zero.txt", "sub/away"}
    assert {reason for path, reason in reasons.items() if path not in ("pipe.txt", "zero.txt", "sub/away")} == {
        "unreadable"
    }
    assert sum(size["bytes"] for size in source_fingerprint(chosen).values()) == sum(
        (tree / name).stat().st_size for name in found if (tree / name).is_file()
    )


def test_a_folder_with_links_alone_has_no_files(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (tmp_path / "away").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ConfigError, match="no file in"):
        list_files(config({"path": str(tmp_path)}))


@pytest.mark.parametrize(
    ("name", "format", "forced"),
    [
        ("a.md", "markdown", "html"), ("README", "text", "html"), ("README.gz", "text", "html"),
        ("a.1", "man", "text"), ("printf.3posix.gz", "man", "text"), ("copyright", "text", "rst"),
        ("Makefile", "code", "text"), ("CMakeLists.txt", "code", "text"), ("a.tex", "latex", "text"),
        ("a.bin", "", "text"), ("liba.so.6", "man", "text"), ("a.eml", "mail", "text"),
        ("rows.jsonl.zst", "jsonl", None), ("a.json.gz", "json", None), ("a.TSV", "csv", None),
        ("a.warc.wet.gz", "warc", None), ("a.tgz", "tar", None), ("a.epub", "epub", None), ("a.mbox.xz", "mbox", None),
    ],
)  # fmt: skip
def test_formats_by_name(name: str, format: str, forced: str | None) -> None:
    """What holds other things keeps its format, whatever the source says of these."""
    assert format_of(name, SourceConfig(name="s", path=".")) == format
    chosen = SourceConfig.model_validate({"name": "s", "path": ".", "format": forced or "html"})
    assert format_of(name, chosen) == (forced or format)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "/nowhere/at/all"}, "does not exist"),
        ({"path": "${home}/x"}, "only \\$\\{stdlib\\}"),
        ({"path": ".", "include": ["*.nothing"]}, "no file in .* matches include"),
        ({"path": ".", "include": ["/etc/*"]}, "cannot be used"),
    ],
)
def test_errors_name_source_and_setting(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"'s0'.*{message}"):
        list_files(config(source))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"sources": []}, "sources"),
        ({"sources": [{"name": "a", "path": "."}, {"name": "a", "path": "x"}]}, "two sources are named 'a'"),
        (
            {"sources": [{"name": "a", "path": "."}], "quality": {"gopher": {"min_words": 9, "max_words": 3}}},
            "min_words",
        ),
        ({"sources": [{"name": "a", "path": "."}], "pii": {"keep": ["e-mail"]}}, "pii"),
        ({"sources": [{"name": "a", "path": "."}], "dedupe": {}}, "did you mean 'dedup'"),
    ],
)
def test_bad_configurations(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(DataConfig, tree)


def test_fingerprint_sees_content_names_and_nothing_else(tree: Path) -> None:
    chosen = config({"path": str(tree)})
    first = source_fingerprint(chosen)
    assert first["s0"]["files"] == 5
    os.utime(tree / "b.py", (0, 0))
    assert source_fingerprint(chosen) == first
    (tree / "b.py").write_text("B.py")
    changed = source_fingerprint(chosen)
    assert changed["s0"]["bytes"] == first["s0"]["bytes"] and changed != first
    (tree / "b.py").write_text("b.py")
    (tree / "b.py").rename(tree / "bb.py")
    assert source_fingerprint(chosen) not in (first, changed)


def test_fingerprint_of_the_standard_library_is_quick() -> None:
    chosen = config({"path": "${stdlib}", "include": ["**/*.py"]})
    started = time.process_time()
    found = source_fingerprint(chosen)["s0"]
    assert found["files"] > 400
    assert time.process_time() - started < 0.05 + 5e-5 * found["files"] + 1e-8 * found["bytes"]
    assert all(f.file.is_relative_to(sysconfig.get_path("stdlib")) for f in list_files(chosen))


def test_workers_are_no_part_of_the_key(tree: Path) -> None:
    assert "workers" not in config({"path": str(tree)}).plain()


@pytest.fixture
def stored(
    tree: Path,
    in_memory: dict[str, MemoryStore],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Store:
    """The tree's files in a store, as `s3://bucket/docs`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    store = Store("s3://bucket/docs")
    for path in filter(Path.is_file, tree.rglob("*")):
        store.upload(path, path.relative_to(tree).as_posix())
    return store


def test_a_source_in_a_store_has_the_files_that_it_has_in_a_folder(tree: Path, stored: Store) -> None:
    here, there = config({"path": str(tree)}), config({"path": "s3://bucket/docs/"})
    assert [(f.path, f.format) for f in list_files(there)] == [(f.path, f.format) for f in list_files(here)]
    before = source_fingerprint(there)
    assert before["s0"]["files"] == 5 and not any(file.file.exists() for file in list_files(there))  # only listed
    fetch_sources(there)
    assert [f.file.read_text() for f in list_files(there)] == [f.file.read_text() for f in list_files(here)]
    stored.write("a.md", b"A.md")  # of equal length
    stored.delete(["b.py"])
    after = source_fingerprint(there)
    assert after["s0"]["files"] == 4 and after["s0"]["sha256"] != before["s0"]["sha256"]
    copies = [f.file for f in list_files(there)]
    fetch_sources(there)
    assert copies[0].read_text() == "A.md" and not copies[0].with_name("b.py").exists()


def test_a_source_may_be_one_object(stored: Store) -> None:
    one = config({"path": "s3://bucket/docs/sub/c.txt"})
    fetch_sources(one)
    assert [(f.path, f.file.read_text()) for f in list_files(one)] == [("c.txt", "sub/c.txt")]
    with pytest.raises(StoreError, match="s3://bucket/docs/sub/nothing: nothing is there"):
        list_files(config({"path": "s3://bucket/docs/sub/nothing"}))


def test_a_source_may_be_one_file_on_the_web(website: Website) -> None:
    website.files["docs/a.md"] = b"first"
    one = config({"path": f"{website.url}/docs/a.md"})
    before = source_fingerprint(one)
    fetch_sources(one)
    assert [(f.path, f.format, f.file.read_text()) for f in list_files(one)] == [("a.md", "markdown", "first")]
    website.files["docs/a.md"] = b"FIRST"
    assert source_fingerprint(one)["s0"]["sha256"] != before["s0"]["sha256"]
    assert [status for status, _ in website.answers].count(200) == 2
    with pytest.raises(StoreError, match=r"docs/b\.md: 404 Not Found"):
        list_files(config({"path": f"{website.url}/docs/b.md"}))


def test_unchanged_objects_are_copied_once(stored: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    there, read, download = config({"path": "s3://bucket/docs"}), [], Store.download
    monkeypatch.setattr(Store, "download", lambda *call: read.append(call[1]) or download(*call))
    fetch_sources(there)
    fetch_sources(there)
    assert sorted(read) == [file.path for file in list_files(there)]
    (list_files(there)[0].file).unlink()
    fetch_sources(there)
    assert len(read) == 6


PARTS = st.sampled_from(["a", "b.py", ".git", "A", "a.md", "[a]"])
GLOBS = st.lists(st.sampled_from(["*", "**", "a", "a*", "?", "*.py", ".*", "[ab]*", "[!a]"]), min_size=1, max_size=3)


@settings(max_examples=30)
@example({"a/a"}, ["*"], ["*", "*", "**"])  # no folder, so the last part of the glob has nothing to stand for
@example({"a/a", "a/b.py/a"}, ["**"], ["a", "b.py", "**", "**"])
@given(st.sets(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6), GLOBS, GLOBS)
def test_names_match_globs_as_files_do(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], include: list[str], exclude: list[str]
) -> None:
    names = {name for name in names if not any(other.startswith(f"{name}/") for other in names)}
    root = tmp_path_factory.mktemp("glob")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    globs = ("/".join([*include, "*"]),), ("/".join(exclude),)
    source = SourceConfig(name="s", path=str(root), include=globs[0], exclude=globs[1])
    left_out = set(root.glob(globs[1][0]))
    globbed = {
        path.relative_to(root).as_posix()
        for path in root.glob(globs[0][0])
        if path.is_file() and not left_out & {path, *path.parents}
    }
    assert {path for path, _, _ in _matches(source)} == globbed
    assert {name for name in names if _is_included(name, source)} == globbed
